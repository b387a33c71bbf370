"""How exact and how large are exported adapters? ``python -m benchmarks.exported ADAPTER VIDEOS``, about 15 minutes.

Exports an adapter in each format and precision, and compares each file with the model on the val videos. Needs the
extra "export", and torchao.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reporting import tables
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from peft_aim.video import export
from peft_aim.video.backbones import Source

Facts = dict[str, Any]
FORMATS, PRECISIONS = ("onnx", "pt2"), ("fp32", "fp16", "int8")


def measure(adapter: str, videos: Path, source: Source | None = None) -> list[Facts]:
    """Export an adapter in each format and precision, and return size and differences of each file."""
    found = []
    for kind in FORMATS:
        for precision in PRECISIONS:
            with TemporaryDirectory() as folder:
                made = export(adapter, Path(folder, f"a.{kind}"), precision=precision, videos=videos, source=source)
            compared = made.videos
            facts = {"format": kind, "precision": precision, "bytes": made.bytes, "on_noise": made.difference}
            facts |= {"videos": compared.videos, "top1": compared.top1, "differing": compared.differing}
            found.append({**facts, "on_videos": compared.difference, "lengths": made.lengths})
            print(found[-1], flush=True)
    return found


def table(rows: list[Facts]) -> str:
    """Return sizes and differences in Markdown."""
    names = [
        "file",
        "MiB",
        "largest difference on noise",
        "on videos",
        "top-1 before",
        "after",
        "predictions that differ",
    ]
    lines = [
        tables.line(
            f"{row['format']}, {row['precision']}",
            f"{row['bytes'] / 2**20:.1f}",
            f"{row['on_noise']:.0e}",
            f"{row['on_videos']:.0e}",
            *(f"{top1:.1%}" for top1 in row["top1"]),
            f"{row['differing']} of {row['videos']}",
        )
        for row in rows
    ]
    return tables.headed(names, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``exported.json`` and the table."""
    parser = argparse.ArgumentParser("benchmarks.exported", description=__doc__.splitlines()[0])
    parser.add_argument("adapter", help="folder of an adapter")
    parser.add_argument("videos", type=Path, help="folder with val/<class>/*, or a list or table")
    parser.add_argument("--model", help="timm's name of the backbone (default: as recorded in the adapter)")
    parser.add_argument("--weights", help="file with the backbone's weights")
    given, command = parse(parser, argv)
    source = Source(given.model, weights=given.weights) if given.model else None
    path = record("exported", command, 0, given.output, rows=measure(given.adapter, given.videos, source))
    tables.publish("exported", given.output, table(json.loads(path.read_text())["rows"]))


if __name__ == "__main__":
    main()
