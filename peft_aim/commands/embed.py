"""``peft-aim embed``: one vector per video, to search by."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source, views


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "embed",
        "Write one vector per video, the features before the head: OUT.safetensors, and OUT.csv with the videos.",
        "peft-aim embed my-task videos --output videos",
    )
    parser.add_argument("adapter", help="folder or Hub id of the adapter")
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="videos: files, URLs, folders of images, folders of videos (with subfolders), or lists and tables as in "
        "train, whose labels are written, too",
    )
    parser.add_argument(
        "--output",
        metavar="OUT",
        help="write OUT.safetensors and OUT.csv; row i of the table is vector i (default: ADAPTER-embeddings)",
    )
    parser.add_argument(
        "--split", help="use this split of a folder SPLIT/<class>/* or table, with its labels (default: all videos)"
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder that paths in a list or table are relative to (default: that of the file)",
    )
    parser.add_argument(
        "--views", type=views, metavar="CLIPSxCROPS", help="views per video (default: those recorded in the adapter)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="views per forward pass (default: 8)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that load videos (default: 1)")
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the vectors, and print how many there are and which videos are left out."""
    from peft_aim.video.embedding import embed, without_suffix
    from peft_aim.video.processes import processes, say

    output = Path(arguments.output or f"{Path(arguments.adapter).resolve().name}-embeddings")
    options = {name: getattr(arguments, name) for name in ("split", "root", "views", "batch_size", "workers")}
    found = embed(arguments.adapter, arguments.videos, output, source=source(arguments), **options)
    lines = [f"skipped: {reason}" for reason in found.skipped] + [f"damaged: {what}" for what in found.damaged]
    for line in lines + [f"Note: {note}" for note in found.remarks.notes()]:
        processes().print(line, file=sys.stderr)
    stem = without_suffix(output)
    count, dims = found.vectors.shape
    say(f"{count} videos embedded, {len(found.skipped)} skipped: vectors of {dims} numbers, not normalized.")
    say(f"Saved {stem.name}.safetensors and {stem.name}.csv to {stem.resolve().parent}")
    return 0
