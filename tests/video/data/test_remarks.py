"""What is noticed about videos while they are read."""

from __future__ import annotations

import json

from torch.utils.data import default_collate

from peft_aim.video.data.clips import NoiseClips
from peft_aim.video.data.remarks import Remarks


def test_remarks_are_taken_out_of_a_batch_and_count_once():
    batch = default_collate([NoiseClips(4, (2, 3, 8, 8))[0] | {"skipped": text} for text in ("a", "", "b", "a")])
    remarks = Remarks()
    remarks.take(batch)
    remarks.take({"hdr": ["c.mov", "d.mov", "c.mov"]})
    assert batch.keys() == {"clips", "labels", "seconds"}
    assert remarks.to_dict() == {"skipped": ["a", "b"], "damaged": [], "hdr": ["c.mov", "d.mov"]}


def test_remarks_survive_json_and_those_of_earlier_versions_are_read():
    remarks = Remarks()
    remarks.take({"skipped": ["a"], "damaged": ["b"], "hdr": ["c"]})
    assert Remarks.from_dict(json.loads(json.dumps(remarks.to_dict()))) == remarks.gathered() == remarks
    assert Remarks.from_dict(["a", "b"]).to_dict() == {"skipped": ["a", "b"], "damaged": [], "hdr": []}


def test_hdr_is_noted_once():
    remarks = Remarks()
    assert remarks.notes() == []
    remarks.take({"hdr": ["a.mov", "b.mov"]})
    assert remarks.notes() == [
        "2 videos are HDR (PQ or HLG), a.mov for example: HDR is read without tone mapping, so the colors look washed "
        "out. Convert such videos to SDR first."
    ]
