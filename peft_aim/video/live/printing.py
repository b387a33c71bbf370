"""Print what is watched: a line for each change or every few seconds, and a bar that shows what is on top now."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TextIO

from tqdm import tqdm

from peft_aim.video.live.events import Remark, Scores, Summary
from peft_aim.video.problem_type import REGRESSION, text_of


class Printer:
    """Print scores to stdout and remarks to stderr, with a live bar if that is a terminal.

    Args:
        every: Seconds of the source between two lines if the most probable class stays the same; None prints none. Of
            numbers, which never stay the same, None prints a line every second.
        as_json: Whether to print scores and summary as JSON, an object per line.
    """

    def __init__(self, every: float | None = None, as_json: bool = False) -> None:
        self._every, self._as_json = every, as_json
        self._last: Scores | None = None
        form = "{desc} |{bar:20}| {percentage:3.0f}%{postfix}"
        # The length of the bar is the probability of the class. disable=None shows it in terminals only.
        self._bar = tqdm(desc="waiting", total=1.0, bar_format=form, disable=None, leave=False)

    def show(self, event: Scores | Remark) -> None:
        """Print an event, if it is due."""
        if isinstance(event, Remark):
            self._print(str(event), sys.stderr)
            return
        if self._is_due(event):
            self._last = event
            self._print(json.dumps(asdict(event)) if self._as_json else str(event))
        if not self._bar.disable:
            (name, probability), *_ = event.top
            delay = "" if event.delay is None else f", {event.delay:.1f} s behind"
            is_number = event.problem_type == REGRESSION
            self._bar.n = 0 if is_number else probability
            name = text_of(event.top, REGRESSION) if is_number else name
            self._bar.set_description_str(f"{event.time:7.1f} s  {name}", refresh=False)
            self._bar.set_postfix_str(f"{event.skipped} skipped{delay}")

    def end(self, summary: Summary) -> None:
        """Remove the bar and print the summary."""
        self._bar.close()
        if summary.seen:
            self._print(json.dumps({"summary": asdict(summary)}) if self._as_json else f"\n{summary}")

    def _is_due(self, scores: Scores) -> bool:
        last = self._last
        if last is None or last.predicted != scores.predicted:
            return True
        every = 1.0 if self._every is None and scores.problem_type == REGRESSION else self._every
        return every is not None and scores.time - last.time >= every

    def _print(self, text: str, file: TextIO | None = None) -> None:
        with tqdm.external_write_mode(file):  # the bar would end up on the same line
            print(text, file=file, flush=True)
