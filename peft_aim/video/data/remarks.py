"""What is noticed about videos while they are read, for the report: skipped, damaged and HDR videos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_aim.video.processes import gather

KINDS = ("skipped", "damaged", "hdr")


@dataclass
class Remarks:
    """What was noticed about videos: one remark of each kind on a video, the first, however often the video is read.

    Attributes:
        texts: By kind, the remark on each video by its path: "skipped", why it cannot be read; "damaged", which of its
            frames had to be replaced, if many; "hdr", the path of a video in HDR.

    Example:
        >>> remarks = Remarks()
        >>> remarks.take({"path": ["a.mp4", "b.mov"], "skipped": ["a.mp4 is empty.", ""], "hdr": ["", "b.mov"]})
        >>> remarks.skipped, remarks.notes()[0].partition(":")[0]
        (['a.mp4 is empty.'], '1 video is HDR (PQ or HLG), b.mov for example')
    """

    texts: dict[str, dict[str, str]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    @property
    def skipped(self) -> list[str]:
        """Why videos could not be read, one message for each."""
        return [*self.texts["skipped"].values()]

    @property
    def damaged(self) -> list[str]:
        """Which videos have many frames that had to be replaced, one message for each."""
        return [*self.texts["damaged"].values()]

    @property
    def hdr(self) -> list[str]:
        """Paths of videos in HDR."""
        return [*self.texts["hdr"].values()]

    def take(self, batch: dict[str, Any]) -> None:
        """Remove the paths and remarks from a batch, and add them to these; "" stands for none."""
        paths = batch.pop("path")
        for kind in KINDS:
            self._add(kind, zip(paths, batch.pop(kind, [""] * len(paths)), strict=True))

    def add(self, found: Mapping[str, Mapping[str, str] | Iterable[str]]) -> None:
        """Add remarks by kind and path; a list has remarks on videos without a path, each of which counts once."""
        for kind, texts in found.items():
            self._add(kind, texts.items() if isinstance(texts, Mapping) else ((text, text) for text in texts))

    def _add(self, kind: str, remarks: Iterable[tuple[str, str]]) -> None:
        for path, text in remarks:
            if text:
                self.texts[kind].setdefault(path, text)

    def gathered(self) -> Remarks:
        """Return the remarks of all processes, sorted by path."""
        return Remarks({kind: dict(gather(texts.items())) for kind, texts in self.texts.items()})

    def notes(self) -> list[str]:
        """Return what limits the results, in words."""
        found = f"{len(self.hdr)} videos are" if len(self.hdr) > 1 else "1 video is"
        note = (
            f"{found} HDR (PQ or HLG), {next(iter(self.hdr), None)} for example: HDR is read without tone mapping, so "
            "the colors look washed out. Convert such videos to SDR first."
        )
        return [note] if self.hdr else []

    @classmethod
    def from_dict(cls, found: dict[str, Any] | list[str]) -> Remarks:
        """Return remarks whose ``texts`` were saved; earlier versions saved lists, or a list of ``skipped``.

        Example:
            >>> Remarks.from_dict(["a.mp4 is empty."]) == Remarks.from_dict({"skipped": ["a.mp4 is empty."]})
            True
        """
        remarks = cls()
        remarks.add({"skipped": found} if isinstance(found, list) else found)
        return remarks


class Remarked:
    """Results that come with remarks on the videos.

    Attributes:
        remarks: What was noticed about the videos.
    """

    remarks: Remarks

    @property
    def skipped(self) -> list[str]:
        """Why videos could not be read, one message for each."""
        return self.remarks.skipped

    @property
    def damaged(self) -> list[str]:
        """Which videos have many frames that had to be replaced, one message for each."""
        return self.remarks.damaged
