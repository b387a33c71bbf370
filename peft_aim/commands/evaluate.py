"""``peft-aim evaluate``: evaluate an adapter on labeled videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, add_videos, new_command, source, views


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "evaluate",
        "Evaluate an adapter on labeled videos: accuracies and the confusion matrix, mAP by class, or MAE and R2.",
        "peft-aim evaluate my-task videos --views 3x3",
    )
    parser.add_argument("adapter", help="folder or Hub id of the adapter")
    add_videos(parser)
    parser.add_argument("--split", default="val", help="split of the folder or table to evaluate on (default: val)")
    parser.add_argument(
        "--views", type=views, metavar="CLIPSxCROPS", help="views per video (default: those recorded in the adapter)"
    )
    parser.add_argument("--output", metavar="DIR", help="folder for the results (default: ADAPTER-evaluation)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="views per forward pass (default: 8)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that load videos (default: 1)")
    parser.add_argument(
        "--min-frames", type=int, metavar="N", help="skip videos with fewer frames (default: as in training)"
    )
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the adapter and print the results."""
    from peft_aim.video.evaluate import evaluate
    from peft_aim.video.processes import say

    output = Path(arguments.output or f"{Path(arguments.adapter).resolve().name}-evaluation")
    options = {
        name: getattr(arguments, name) for name in ("split", "root", "views", "batch_size", "workers", "min_frames")
    }
    result = evaluate(arguments.adapter, arguments.videos, output, source=source(arguments), **options)
    say(f"{result}\n\nSaved {' and '.join(result.files)} to {output.resolve()}")
    return 0
