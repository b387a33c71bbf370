from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy import tables as accuracy_tables
from benchmarks.accuracy.ladder import BLIND, TABLES
from benchmarks.training.trials import Trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the output of ``--quick``."""
    path = tmp_path_factory.mktemp("accuracy")
    accuracy.main(["--quick", "--output", str(path)])
    return path


def test_all_rows_are_recorded_and_shown(folder):
    found = json.loads((folder / "accuracy.json").read_text())
    assert {table: [row["row"] for row in rows] for table, rows in found["tables"].items()} == {
        table: [row.name for row in rows] for table, rows in TABLES.items()
    }
    text = (folder / "accuracy.md").read_text()
    assert all(row.name in text for row in (*TABLES["main"], *TABLES["ratio"], *TABLES["position"]))
    assert (folder / "accuracy.svg").stat().st_size < 200_000


def test_rows_blind_to_order_are_right_on_exactly_one_of_a_clip_and_its_reversal(folder):
    found = json.loads((folder / "accuracy.json").read_text())
    for row in BLIND.values():
        assert accuracy_tables.of(found["tables"], row)["within_pair"]["values"] == [0.5]


def test_logged_trials_are_not_run_again(folder, monkeypatch):
    log = folder / "accuracy.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1][:-9])  # cut off in the middle of a line
    done = []
    train = accuracy.Bench.train
    monkeypatch.setattr(accuracy.Bench, "train", lambda *args: done.append(args) or train(*args))
    accuracy.main(["--quick", "--output", str(folder)])
    assert len(done) == 1
    assert [json.loads(line)["settings"] for line in (log.read_text().splitlines())][-1] == json.loads(lines[-1])[
        "settings"
    ]


def test_quick_does_not_overwrite_the_results(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--quick"])
    assert "Pass another folder with --output" in capsys.readouterr().err


def test_logged_trials_with_other_settings_are_ignored(tmp_path):
    path = tmp_path / "log.jsonl"
    assert Trials(path, {"steps": 1}).of({"seed": 0}, lambda: {"found": 1})["found"] == 1
    assert Trials(path, {"steps": 1}).of({"seed": 0}, lambda: {"found": 2})["found"] == 1
    assert Trials(path, {"steps": 2}).of({"seed": 0}, lambda: {"found": 3})["found"] == 3
