"""What is noticed about videos while they are read."""

from __future__ import annotations

import json

from torch.utils.data import default_collate

from peft_aim.video.data.clips import NoiseClips
from peft_aim.video.data.remarks import Remarks


def test_remarks_are_taken_out_of_a_batch_and_count_once_for_each_video():
    """Although the text differs each time that a damaged video is read."""
    found = [("a.mp4", "3 of 8"), ("", ""), ("b.mp4", ""), ("b.mp4", "1 of 2"), ("a.mp4", "4 of 8"), ("a.mp4", "")]
    clip = NoiseClips(4, (2, 3, 8, 8), 2)[0]
    batch = default_collate([clip | {"path": path, "damaged": text} for path, text in found])
    remarks = Remarks()
    remarks.take(batch)
    remarks.take({"path": ["b.mp4", "c.mov"], "damaged": ["2 of 2", ""], "hdr": ["", "c.mov"]})
    assert batch.keys() == {"clips", "labels", "targets", "seconds"}
    assert (remarks.skipped, remarks.damaged, remarks.hdr) == ([], ["3 of 8", "1 of 2"], ["c.mov"])
    remarks.add({"damaged": {"a.mp4": "5 of 8", "d.mp4": "2 of 4"}})
    assert remarks.damaged == ["3 of 8", "1 of 2", "2 of 4"]


def test_remarks_survive_json_and_those_of_earlier_versions_are_read():
    remarks = Remarks()
    remarks.add({"skipped": {"a": "a is empty."}, "damaged": {"b": "b is damaged."}, "hdr": ["c"]})
    assert Remarks.from_dict(json.loads(json.dumps(remarks.texts))) == remarks.gathered() == remarks
    assert Remarks.from_dict({"skipped": ["a", "a", "b"], "damaged": [], "hdr": ["c"]}).skipped == ["a", "b"]
    assert Remarks.from_dict(["a", "b"]).skipped == ["a", "b"]


def test_hdr_is_noted_once():
    remarks = Remarks()
    assert remarks.notes() == []
    remarks.add({"hdr": ["a.mov", "b.mov"]})
    assert remarks.notes() == [
        "2 videos are HDR (PQ or HLG), a.mov for example: HDR is read without tone mapping, so the colors look washed "
        "out. Convert such videos to SDR first."
    ]
