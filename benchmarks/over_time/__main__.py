"""Attention or a convolution over time? One table from the records of three benchmarks.

Run these with ``--over-time`` before: ``benchmarks.accuracy``, ``benchmarks.real`` and ``benchmarks.cost``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.accuracy import ladder
from benchmarks.accuracy.tables import spread
from benchmarks.cost.tables import PLAIN, by_row
from benchmarks.methods.rivals import AS_TRAINED
from benchmarks.real import rows
from benchmarks.real.tables import accuracy, of
from benchmarks.reporting.record import RESULTS
from benchmarks.reporting.tables import HERE, headed, insert, line

Facts = dict[str, Any]

# By what AIMConfig gets: the rows of the benchmarks on synthetic clips, on real videos, and of costs.
ROWS = {
    "the paper's: attention": (ladder.AIM.name, None, PLAIN),
    "attention, `temporal_conv=True`": (rows.BOTH.name, rows.BOTH, rows.BOTH.name),
    'the same, `temporal_embedding="blocks"`': (AS_TRAINED, rows.AIM, AS_TRAINED),
    '`temporal="conv"`': (rows.CONVOLUTION_ALL.name, rows.CONVOLUTION_ALL, rows.CONVOLUTION_ALL.name),
    "the same alone: ST-Adapter": (rows.CONVOLUTION.name, rows.CONVOLUTION, rows.CONVOLUTION.name),
}


def table(folder: Path = RESULTS) -> str:
    """Return the table in Markdown."""
    synthetic, real, costs = (read(folder, name) for name in ("accuracy", "real", "cost"))
    scores = {row["row"]: row for row in synthetic["tables"]["over time"]}
    cost = by_row(costs["rows"])
    lines = []
    for label, (drawn, filmed, priced) in ROWS.items():
        top1 = [accuracy(of(real, filmed, task)).partition(" ")[0] if filmed else "-" for task in ("signs", "order")]
        gmac = cost[priced]["forward_gmac"], cost[priced]["backward_gmac"]
        parameters = f"{cost[priced]['parameters'] / 1e6:.1f} M"
        cells = (
            spread(scores[drawn]["top1"]),
            *top1,
            *(f"{n:.0f}" for n in gmac),
            f"{cost[priced]['saved_mb']:,.0f} MB",
        )
        lines.append(line(label, *cells, parameters))
    names = ["", "synthetic, top-1", "signs", "order", "forward, GMAC", "backward", "saved activations", "parameters"]
    return headed(names, lines)


def read(folder: Path, name: str) -> Facts:
    """Read the record of a benchmark that was run with ``--over-time``."""
    return json.loads((folder / f"{name}_over_time.json").read_text())


if __name__ == "__main__":
    insert("over_time", table(), HERE)
