"""The benchmark of explanations: what it draws and counts, that it runs, and what it found."""

from __future__ import annotations

import json

import torch

from benchmarks.explain import candidates, scoring
from benchmarks.explain.__main__ import main
from benchmarks.explain.videos import CLASSES, draw
from benchmarks.reporting.record import RESULTS


def test_the_event_is_where_a_digit_of_the_class_appears():
    for task in CLASSES:
        drawn = draw(task, 6, held_out=True, seed=0)
        assert torch.equal(drawn.clips, draw(task, 6, held_out=True, seed=0).clips)
        assert drawn.events.flatten(2).any(-1).sum(1).tolist() == [3] * 6
        assert drawn.clips[:, :, 0][drawn.events].mean() > drawn.clips.mean() + 0.2
    left = draw("motion", 20, held_out=True, seed=0)
    for label, event in zip(left.labels.tolist(), left.events, strict=True):
        columns = [frame.any(0).float().argmax().item() for frame in event if frame.any()]
        assert (columns[-1] - columns[0]) == {0: -8, 1: 8}.get(label, 0)


def test_hits_are_counted_by_cell_frame_and_place():
    event = torch.zeros(3, 2, 2, dtype=torch.bool)
    event[1, 0, 0] = True
    cells = torch.zeros(3, 2, 2)
    cells[1, 0, 0], cells[2, 1, 1], cells[0, 0, 0] = 2.0, 1.0, -5.0
    assert torch.tensor(scoring.hits(cells, event)).allclose(torch.tensor([1.0, 1.0, 1.0, 2 / 3]))
    assert scoring.hits(cells.roll(1, 0), event) == [0.0, 0.0, 1.0, 0.0]
    assert torch.tensor(scoring.chance(event[None])).allclose(torch.tensor([1 / 12, 1 / 3, 1 / 4, 1 / 12]))


def test_quick(tmp_path, monkeypatch):
    few = {name: candidates.CANDIDATES[name] for name in ("gradient x input", "gradient x tokens of the first block")}
    monkeypatch.setattr(scoring, "CANDIDATES", few)
    main(["--quick", "--output", str(tmp_path), "--models", str(tmp_path)])
    found = json.loads((tmp_path / "explain.json").read_text())
    for task in found["tasks"].values():
        assert [row["row"] for row in task["rows"]] == ["chance", *few]
    assert "top-1 with frames" in (tmp_path / "explain.md").read_text()


def test_the_way_that_is_chosen_is_far_better_than_chance():
    for task in json.loads((RESULTS / "explain.json").read_text())["tasks"].values():
        rows = {row["row"]: row for row in task["rows"]}
        best, chance = rows[list(candidates.CANDIDATES)[-1]], rows["chance"]
        assert best["cell"] > 20 * chance["cell"] and best["place"] > 5 * chance["place"]
        assert best["frame"] > 2 * chance["frame"]
