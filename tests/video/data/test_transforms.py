"""Preprocessing and augmentation: the same for all frames of a clip, with labels that follow flips."""

from __future__ import annotations

import pytest
import torch

from peft_aim.video.data.transforms import ForEvaluation, ForTraining, Preprocessing, mirrored_labels, to_image
from peft_aim.video.recipe import Recipe, preset

GREY = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
ALL = {"flip": True, "color_jitter": True, "rand_augment": (4, 7), "random_erasing": 0.5, "crop_scale": (0.2, 1.0)}


def test_all_frames_of_a_clip_are_augmented_alike():
    frame = torch.randint(0, 255, (1, 3, 40, 60), dtype=torch.uint8)
    transform = ForTraining(GREY, Recipe(**ALL), ["a", "b"])
    results = [transform(frame.expand(5, -1, -1, -1), 0)[0] for _ in range(30)]
    for clip in results:
        assert clip.shape == (5, 3, 16, 16) and clip.dtype == torch.float32
        assert torch.equal(clip, clip[:1].expand_as(clip))
    assert not torch.equal(results[0], results[1])


def test_augmentation_does_not_mix_frames():
    frames = torch.randint(0, 255, (3, 3, 40, 60), dtype=torch.uint8)
    changed = frames.clone()
    changed[1] = 255 - changed[1]
    transform = ForTraining(GREY, Recipe(**ALL), ["a", "b"])
    for seed in range(20):
        torch.manual_seed(seed)
        one, _ = transform(frames, 0)
        torch.manual_seed(seed)
        other, _ = transform(changed, 0)
        assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])


def test_flips_swap_the_labels_of_flip_pairs():
    frames = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    frames[..., :8] = 255  # bright on the left
    recipe = Recipe(flip=True, flip_pairs=(("left", "right"),), crop_scale=(1.0, 1.0))
    transform = ForTraining(GREY, recipe, ["left", "right", "up"])
    for label, bright in ((0, "left"), (2, "up")):
        seen = set()
        for _ in range(20):
            clip, new = transform(frames, label)
            is_mirrored = bool(clip[..., :4].mean() < clip[..., -4:].mean())
            seen.add((is_mirrored, new))
        assert seen == {(False, label), (True, 1 if bright == "left" else 2)}


def test_flip_pairs_of_something_something_are_swapped():
    recipe = preset("ssv2")
    pairs = mirrored_labels(recipe.flip_pairs, [str(i) for i in range(174)])
    assert pairs == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert mirrored_labels((("left", "right"), (1, 0)), ["left", "right"]) == {0: 1, 1: 0}  # the same pair again
    with pytest.raises(ValueError, match="contains 'west', which is not one of the 2 classes"):
        mirrored_labels((("west", "east"),), ["left", "right"])


def test_flips_are_off_by_default():
    frames = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    frames[..., :8] = 255
    transform = ForTraining(GREY, Recipe(crop_scale=(1.0, 1.0)), ["left", "right"])
    assert all(transform(frames, 0)[0][..., :4].mean() == 1 for _ in range(20))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_rand_augment_takes_every_interpolation_of_a_backbone(interpolation):
    preprocessing = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, interpolation)
    augment = ForTraining(preprocessing, Recipe(rand_augment=(4, 7)), ["a", "b"])
    for seed in range(10):
        torch.manual_seed(seed)
        assert augment(torch.zeros(2, 3, 20, 20, dtype=torch.uint8), 0)[0].shape == (2, 3, 16, 16)


def test_rand_augment_magnitudes_are_out_of_30_as_in_the_official_configs():
    operations = ForTraining(GREY, preset("ssv2"), [str(i) for i in range(174)]).steps.transforms[1]
    assert operations.num_ops == 4
    angles, _ = operations._AUGMENTATION_SPACE["Rotate"]
    assert angles(operations.num_magnitude_bins, 224, 224)[operations.magnitude] == pytest.approx(7.0)  # of 30 degrees


@pytest.mark.parametrize("magnitude", [0, 30])
def test_rand_augment_takes_the_magnitudes_that_its_help_gives(magnitude):
    assert "magnitude, 0 to 30" in " ".join(Recipe.__doc__.split())
    transform = ForTraining(GREY, Recipe(rand_augment=(2, magnitude)), ["a", "b"])
    frames = torch.randint(0, 255, (2, 3, 40, 60), dtype=torch.uint8)
    for seed in range(60):  # all operations
        torch.manual_seed(seed)
        assert transform(frames, 0)[0].isfinite().all()
    with pytest.raises(ValueError, match="Give a number of operations and a magnitude from 0 to 30"):
        Recipe(rand_augment=(2, 31))


def test_evaluation_crops_the_center_or_from_end_to_end():
    frame = torch.zeros(1, 3, 16, 48, dtype=torch.uint8)
    frame[..., 16:32], frame[..., 32:] = 128, 255
    assert torch.equal(ForEvaluation(GREY)(frame), ForEvaluation(GREY, crops=3)(frame)[1:2])
    means = ForEvaluation(GREY, crops=3)(frame).mean((1, 2, 3, 4))
    assert torch.allclose(means, torch.tensor([-1.0, 0.0, 1.0]), atol=0.01)
    upright = frame.transpose(-1, -2)
    assert torch.allclose(ForEvaluation(GREY, crops=3)(upright).mean((1, 2, 3, 4)), means)


@pytest.mark.parametrize("size", [(31, 57), (57, 31), (15, 15), (16, 400), (1, 1)])
@pytest.mark.parametrize("wanted", [(16, 16), (12, 20)])
def test_frames_of_any_size_fit(size, wanted):
    preprocessing = Preprocessing(wanted, (0.5,) * 3, (0.5,) * 3, "bicubic")
    frames = torch.full((2, 3, *size), 255, dtype=torch.uint8)
    assert torch.equal(ForEvaluation(preprocessing, crops=3)(frames), torch.ones(3, 2, 3, *wanted))
    clip, _ = ForTraining(preprocessing, Recipe(), ["a", "b"])(frames, 0)
    assert torch.equal(clip, torch.ones(2, 3, *wanted))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_frames_resized_one_by_one_make_the_same_clip(interpolation):
    frames = torch.randint(0, 255, (6, 3, 90, 120), dtype=torch.uint8)
    preprocessing = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation)
    training = ForTraining(preprocessing, Recipe(**ALL), ["a", "b"])
    for seed in range(4):
        torch.manual_seed(seed)
        together, label = training(frames, 1)
        torch.manual_seed(seed)
        cutout = training.cutout(frames.shape[-2:])
        one_by_one, same = training.finish(torch.stack([cutout(frame) for frame in frames]), 1, cutout)
        assert torch.equal(one_by_one, together) and label == same
    evaluation = ForEvaluation(preprocessing, crops=3)
    covering = torch.stack([evaluation.covering(frame) for frame in frames])
    assert torch.equal(evaluation.cropped(covering), evaluation(frames))


def test_to_image_undoes_the_normalization():
    frames = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    clip = ForEvaluation(GREY)(frames)[0]
    assert torch.allclose(to_image(clip, GREY), frames.permute(0, 2, 3, 1) / 255, atol=1e-6)
