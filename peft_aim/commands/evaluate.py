"""``peft-aim evaluate``: how well an adapter does on labelled videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, add_videos, new_command, source, views


def add(commands: Commands) -> None:
    """Say what it takes."""
    parser = new_command(
        commands,
        "evaluate",
        "Evaluate an adapter on labelled videos: top-1, top-5, mean-class, confusion matrix.",
        "peft-aim evaluate my-task videos --views 3x3",
    )
    parser.add_argument("adapter", help="folder or Hub id of the adapter")
    add_videos(parser)
    parser.add_argument("--split", default="val", help="which part of a folder or table (default: val)")
    parser.add_argument("--views", type=views, metavar="CLIPSxCROPS", help="views per video; by default the adapter's")
    parser.add_argument("--output", metavar="DIR", help="folder for results; by default the adapter's name-evaluation")
    parser.add_argument("--batch-size", type=int, default=8, help="views at a time (default: 8)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read videos (default: 1)")
    parser.add_argument("--min-frames", type=int, help="skip videos of fewer frames; by default as in its training")
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print what came out."""
    from peft_aim.video.evaluate import evaluate
    from peft_aim.video.processes import say

    output = Path(arguments.output or f"{Path(arguments.adapter).resolve().name}-evaluation")
    options = {
        name: getattr(arguments, name) for name in ("split", "root", "views", "batch_size", "workers", "min_frames")
    }
    result = evaluate(arguments.adapter, arguments.videos, output, source=source(arguments), **options)
    say(f"{result}\n\nWritten to {output.resolve()}: evaluation.json, confusion.png")
    return 0
