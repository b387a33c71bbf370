"""The benchmark of streams: it runs, and a frame of a stream costs less than a window."""

from __future__ import annotations

import json

import torch

from benchmarks.streaming.__main__ import main


def test_quick(tmp_path):
    main(["--quick", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "streaming.json").read_text())
    for row in found["rows"]:
        assert row["least_gmac"] == row["most_gmac"] <= row["clip_gmac"] < row["window_gmac"]
        assert row["first_mb"] == row["last_mb"] and row["peak_mb"] < row["window_peak_mb"]
    assert found["graphs"] == found["graphs_at_the_end"] == 1
    text = (tmp_path / "streaming.md").read_text()
    assert "The compiled stream has 1 graph after three frames, and 1 after 4." in text and "grows" not in text
    torch.compiler.reset()
