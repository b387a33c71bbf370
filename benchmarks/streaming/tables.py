"""Makes the table of ``streaming.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.reporting import tables
from benchmarks.reporting.tables import headed, line

Facts = dict[str, Any]


def publish(folder: Path) -> None:
    """Write the tables of a record."""
    tables.publish("streaming", folder, page(json.loads((folder / "streaming.json").read_text())))


def page(found: Facts) -> str:
    """Return all tables."""
    plan = found["plan"]
    how = (
        f"`{found['command']}`: {plan['backbone']}, frames of {plan['size']} px, {plan['dtype']}, {found['device']}, "
        f"{found['threads']} threads, torch {found['versions']['torch']}, commit {found['commit']}."
    )
    return f"{how}\n\n{counts(found['rows'])}\n\n{times(found)}"


def counts(rows: list[Facts]) -> str:
    """Return arithmetic and memory of a frame, by the length of the window."""
    names = [
        "AIM",
        "frames",
        "sliding window, GMAC",
        "frame of a whole clip, GMAC",
        "frame of a stream, GMAC",
        "stream / window",
        "sliding window, peak of live tensors, MB",
        "frame of a stream, peak, MB",
        "remembered, MB",
    ]
    lines = []
    for row in rows:
        least, most = f"{row['least_gmac']:.2f}", f"{row['most_gmac']:.2f}"
        memory = f"{row['last_mb']:.0f}" + (", grows" if row["last_mb"] > row["first_mb"] else "")
        lines.append(
            line(
                row["row"],
                row["frames"],
                f"{row['window_gmac']:.1f}",
                f"{row['clip_gmac']:.2f}",
                least if least == most else f"{least} to {most}",
                f"**{row['most_gmac'] / row['window_gmac']:.3f}**",
                f"{row['window_peak_mb']:.0f}",
                f"{row['peak_mb']:.0f}",
                memory,
            )
        )
    return headed(names, lines)


def times(found: Facts) -> str:
    """Return the times of a frame."""
    seconds = {name: sorted(values)[len(values) // 2] for name, values in found["seconds"].items()}
    lines = [
        line(
            title,
            f"{1e3 * seconds[f'window{how}']:.0f}",
            f"{1e3 * seconds[f'stream{how}']:.0f}",
            f"**{found['ratios'][f'stream / window{how}']:.3f}**",
        )
        for title, how in {"not compiled": "", "compiled": ", compiled"}.items()
    ]
    names = [f"{found['plan']['frames']} frames", "sliding window, ms", "frame of a stream, ms", "stream / window"]
    graphs = (
        f"The compiled stream has {found['graphs']} graph after three frames, and {found['graphs_at_the_end']} after "
        f"{2 * found['plan']['frames']}."
    )
    return f"{headed(names, lines)}\n\n{graphs}"
