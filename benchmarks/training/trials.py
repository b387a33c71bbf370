"""Log of the trials of a long benchmark, one line each, from which an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reporting.record import commit, device

Facts = dict[str, Any]


class Trials:
    """The trials run so far, in a file of JSON lines.

    Args:
        path: The file. Trials that it contains are not run again.
        common: Settings shared by all trials. Trials in the file with other settings are ignored.
    """

    def __init__(self, path: Path, common: Facts) -> None:
        self.path, self.common = path, common
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        lines = [line for line in lines if line.endswith("\n")]  # an interrupted run may leave a partial last line
        path.write_text("".join(lines))
        made = map(json.loads, lines)
        self.made = [trial for trial in made if common.items() <= trial["settings"].items()]

    def of(self, settings: Facts, work: Callable[[], Facts]) -> Facts:
        """Return the trial with these settings; run and log it if the file does not contain it.

        Args:
            settings: Settings that distinguish this trial from the others.
            work: Runs the trial and returns its results.
        """
        return self.find(settings) or self.add(settings, work())

    def find(self, settings: Facts) -> Facts | None:
        """Return the trial with these settings, None if it has not been run."""
        settings = {**settings, **self.common}
        return next((trial for trial in self.made if trial["settings"] == settings), None)

    def add(self, settings: Facts, facts: Facts) -> Facts:
        """Log a trial that has been run, and return it."""
        trial = {"settings": {**settings, **self.common}, "commit": commit(), "device": device(), **facts}
        self.made.append(trial)
        with self.path.open("a") as file:
            file.write(json.dumps(trial) + "\n")
        return trial
