"""Makes the table of ``token_mixers.json``."""

from __future__ import annotations

from typing import Any

from benchmarks.reporting.tables import headed, line


def table(rows: list[dict[str, Any]]) -> str:
    """Return the accuracy of each token mixer, averaged over seeds."""
    lines = []
    for mixing in dict.fromkeys(row["mixing"] for row in rows):
        seeds = [row for row in rows if row["mixing"] == mixing]
        means = (sum(row[column] for row in seeds) / len(seeds) for column in ("with", "without"))
        lines.append(line(mixing, len(seeds), *(f"{mean:.1%}" for mean in means)))
    return headed(["token mixing", "seeds", "AIM", "AIM without temporal adapters"], lines)
