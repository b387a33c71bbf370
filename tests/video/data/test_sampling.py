"""Frame sampling: exact indices."""

from __future__ import annotations

import pytest
import torch

from peft_aim.video.data.sampling import evaluation_frames, training_frames, windows


@pytest.mark.parametrize("count", [1, 3, 8, 30, 301])
@pytest.mark.parametrize("frames", [1, 8, 16])
def test_each_segment_has_one_frame(count, frames):
    (centers,) = evaluation_frames(count, frames, stride=None)
    assert centers == [min(count - 1, int((i + 0.5) * count / frames)) for i in range(frames)]
    for _ in range(20):
        for i, index in enumerate(training_frames(count, frames, stride=None)):
            assert int(i * count / frames) <= index <= min(count - 1, int((i + 1) * count / frames))


def test_training_samples_every_frame_of_a_segment_and_every_start():
    drawn = torch.tensor([training_frames(12, 3, stride=None) for _ in range(500)])
    assert [set(column.tolist()) for column in drawn.T] == [{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}]
    clips = [training_frames(50, 8, stride=4) for _ in range(500)]
    assert {clip[0] for clip in clips} == set(range(50 - 28))
    assert all(clip == list(range(clip[0], clip[0] + 29, 4)) for clip in clips)


def test_strided_clips_start_at_the_centers_of_equal_intervals():
    # 300 frames have 300 - 31 * 4 = 176 starts: three intervals of 58.67
    assert [clip[0] for clip in evaluation_frames(300, 32, stride=4, clips=3)] == [29, 88, 146]
    assert evaluation_frames(300, 32, stride=4) == [list(range(88, 88 + 125, 4))]
    assert evaluation_frames(64, 4, stride=16) == [[8, 24, 40, 56]]


@pytest.mark.parametrize("clips", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("stride", [None, 4])
def test_the_middle_clip_of_an_odd_number_is_the_single_clip(clips, stride):
    for count in (1, 7, 30, 211, 300):
        of_many, of_one = (evaluation_frames(count, 8, stride, clips=k) for k in (clips, 1))
        assert of_many[clips // 2] == of_one[0]


def test_short_videos_loop_with_a_stride_and_repeat_frames_with_segments():
    assert evaluation_frames(10, 4, stride=4) == [[0, 4, 8, 2]]
    assert evaluation_frames(3, 4, stride=2, clips=2) == [[0, 2, 1, 0]] * 2
    assert evaluation_frames(2, 4, stride=None) == [[0, 0, 1, 1]]
    assert evaluation_frames(1, 4, stride=16) == [[0, 0, 0, 0]]
    assert training_frames(1, 3, stride=None) == [0, 0, 0]


def test_several_clips_take_different_parts_of_each_segment():
    assert evaluation_frames(24, 4, stride=None, clips=3) == [[1, 7, 13, 19], [3, 9, 15, 21], [5, 11, 17, 23]]


def test_windows_cover_a_long_video_and_overlap_by_half():
    seconds = [i / 10 for i in range(100)]
    found = windows(seconds, 4.0)
    assert found == [range(0, 40), range(20, 60), range(40, 80), range(60, 100)]
    assert windows(seconds, 9.0) == [range(100)]
    assert windows(seconds, 20.0) == [range(100)]
    assert windows([0.0], 4.0) == [range(1)]
    uneven = [0.0, 0.1, 0.2, 5.0, 9.9]
    assert all(len(window) for window in windows(uneven, 3.0))
