"""Keeps what single trials of a long benchmark bring, line by line, so that an interrupted one goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reporting.record import commit

Facts = dict[str, Any]


class Trials:
    """The trials made so far, in a file of JSON lines.

    Args:
        path: The file; what it has is not done again.
        common: Settings of all trials. Those in the file that were made with others don't count.
    """

    def __init__(self, path: Path, common: Facts) -> None:
        self.path, self.common = path, common
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        lines = [line for line in lines if line.endswith("\n")]  # the last may be cut off
        path.write_text("".join(lines))
        made = map(json.loads, lines)
        self.made = [trial for trial in made if common.items() <= trial["settings"].items()]

    def of(self, settings: Facts, work: Callable[[], Facts]) -> Facts:
        """Return what the trial with these settings brought, after making it if it isn't there yet.

        Args:
            settings: What tells this trial from others.
            work: Makes it and returns what came out.
        """
        settings = {**settings, **self.common}
        for trial in self.made:
            if trial["settings"] == settings:
                return trial
        trial = {"settings": settings, "commit": commit(), **work()}
        self.made.append(trial)
        with self.path.open("a") as file:
            file.write(json.dumps(trial) + "\n")
        return trial
