"""What changed in the videos since a training run was started: which came, which went, which have another class."""

from __future__ import annotations

from collections.abc import Sequence

from peft_aim.video.data.listing import shown

SHOWN = 5  # examples of each kind


def changes(before: str, now: str) -> str:
    r"""Return in words how two lists of videos differ.

    Args:
        before: A list, see :func:`peft_aim.video.data.listed`.
        now: Another one.

    Example:
        >>> changes("train\trun\ta.mp4\ntrain\trun\tb.mp4\n", "train\twalk\ta.mp4\ntrain\trun\tc.mp4\n")
        '1 video came: train c.mp4; 1 went: train b.mp4; 1 has another label: train a.mp4 (run, now walk)'
    """
    old, new = _labels(before), _labels(now)
    came, went = ([video for video in these if video not in those] for these, those in ((new, old), (old, new)))
    other = [f"{video} ({old[video]}, now {new[video]})" for video in new if video in old and old[video] != new[video]]
    found = [
        *_counted(came, "video came", "videos came"),
        *_counted(went, "went", "went"),
        *_counted(other, "has another label", "have another label"),
    ]
    return "; ".join(found) or "they are listed in another order, or another number of times"


def _labels(lines: str) -> dict[str, str]:
    rows = [line.split("\t") for line in lines.split("\n") if line]
    return {f"{split} {path}": label for split, label, path in rows}


def _counted(videos: Sequence[str], one: str, many: str) -> list[str]:
    return [f"{len(videos)} {one if len(videos) == 1 else many}: {shown(videos, SHOWN)}"] if videos else []
