"""Makes the tables of ``containers.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.reporting.tables import headed, line


def tables(facts: dict[str, Any]) -> str:
    """Return the tables of all forms, of speed and of memory."""
    return "\n\n".join((forms(facts), speed(facts["speed"]), memory(facts["memory"])))


def forms(facts: dict[str, Any]) -> str:
    """Return which frames are right in each form, and what an adapter makes of it."""
    lines = [
        line(
            row["form"],
            row["codec"],
            row["read by"],
            f"{row['frames right']} of {row['frames']}",
            f"{row['times right']} of {row['frames']}",
            f"{row['top1']:.1%}",
        )
        for row in facts["rows"]
    ]
    names = ["form", "codec", "read by", "frames right", "times right", f"top-1 on {facts['videos']} videos"]
    return headed(names, lines)


def speed(rows: list[dict[str, Any]]) -> str:
    """Return the time of a clip, and its ratio to that of the former reader."""
    lines = [line(row["group"], f"{row['milliseconds']:.1f} ms", f"{row['ratio']:.2f}") for row in rows]
    return headed(["frames per key frame", "processor time per clip", "ratio to the former reader"], lines)


def memory(rows: list[dict[str, Any]]) -> str:
    """Return the memory of a clip of 4K video."""
    lines = [
        line(row["read by"], *(f"{row[name]} MB" for name in ("decoder", "training", "evaluation"))) for row in rows
    ]
    return headed(["32 frames of 4K, read by", "decoder alone", "training clip", "evaluation clip"], lines)
