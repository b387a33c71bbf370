"""What is noticed about videos while they are read, for the report: skipped, damaged and HDR videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from peft_aim.video.processes import gather


@dataclass
class Remarks:
    """What was noticed about videos; each remark counts once, however often its video is read.

    Attributes:
        skipped: Why videos could not be read.
        damaged: Which videos have many frames that had to be replaced.
        hdr: Paths of videos in HDR.

    Example:
        >>> remarks = Remarks()
        >>> remarks.take({"labels": [0, 1], "skipped": ["", "a.mp4 is empty."], "hdr": ["b.mov", ""]})
        >>> [*remarks.skipped], remarks.notes()[0].partition(":")[0]
        (['a.mp4 is empty.'], '1 video is HDR (PQ or HLG), b.mov for example')
    """

    skipped: dict[str, None] = field(default_factory=dict)  # ordered sets
    damaged: dict[str, None] = field(default_factory=dict)
    hdr: dict[str, None] = field(default_factory=dict)

    def take(self, batch: dict[str, Any]) -> None:
        """Remove the remarks from a batch, and add them to these; "" stands for none."""
        self.add({name: batch.pop(name, ()) for name in KINDS})

    def add(self, found: dict[str, Iterable[str]]) -> None:
        """Add remarks by kind."""
        for name, texts in found.items():
            getattr(self, name).update(dict.fromkeys(filter(None, texts)))

    def gathered(self) -> Remarks:
        """Return the remarks of all processes, sorted."""
        return Remarks(**{name: dict.fromkeys(gather(getattr(self, name))) for name in KINDS})

    def notes(self) -> list[str]:
        """Return what limits the results, in words."""
        found = f"{len(self.hdr)} videos are" if len(self.hdr) > 1 else "1 video is"
        note = (
            f"{found} HDR (PQ or HLG), {next(iter(self.hdr), None)} for example: HDR is read without tone mapping, so "
            "the colors look washed out. Convert such videos to SDR first."
        )
        return [note] if self.hdr else []

    def to_dict(self) -> dict[str, list[str]]:
        """Return the remarks by kind, for JSON."""
        return {name: [*getattr(self, name)] for name in KINDS}

    @classmethod
    def from_dict(cls, found: dict[str, list[str]] | list[str]) -> Remarks:
        """Return remarks that were saved; earlier versions saved a list of ``skipped``.

        Example:
            >>> Remarks.from_dict(["a.mp4 is empty."]) == Remarks.from_dict({"skipped": ["a.mp4 is empty."]})
            True
        """
        remarks = cls()
        remarks.add({"skipped": found} if isinstance(found, list) else found)
        return remarks


KINDS = tuple(kind.name for kind in fields(Remarks))
