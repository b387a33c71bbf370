"""Makes the table of ``demo.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.reporting.tables import headed, line

TITLES = {"motion": "direction of motion", "change": "grow, shrink, turn left, turn right"}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the top-1 of each task, and the size of its adapter."""
    lines = []
    for task, title in TITLES.items():
        chance, frozen, aim = (row for row in rows if row["task"] == task)
        top1 = (f"{row['top-1']:.1%}" for row in (chance, frozen, aim))
        lines.append(line(title, *top1, f"{aim['trained parameters']:,}", f"{aim['file bytes'] / 1000:.0f} kB"))
    return headed(["task", "chance", frozen["model"], "AIM", "trainable parameters", "adapter file"], lines)
