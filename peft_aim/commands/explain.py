"""``peft-aim explain``: which frames and places of a video the score of an adapter rests on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "explain",
        "Explain which frames and places of a video a class rests on, and whether the order of frames matters.",
        "peft-aim explain my-task video.mp4 --label push",
    )
    parser.add_argument("adapter", help="folder or Hub id of the adapter")
    parser.add_argument("video", help="file, URL, or folder of images")
    parser.add_argument(
        "--label", metavar="NAME", help="class or number to explain (default: the most probable class)"
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="length of the sliding window over a long video, of which the one with the highest probability is "
        "explained; 0 takes the video as a whole (default: the typical length of the training videos)",
    )
    parser.add_argument(
        "--output", default="explanations", metavar="DIR", help="folder for the picture (default: explanations)"
    )
    parser.add_argument(
        "--fps", type=float, metavar="X", help="frames per second of a folder of images (default: as in training)"
    )
    parser.add_argument("--json", action="store_true", help="print the explanation as JSON, with all attributions")
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation."""
    from peft_aim.video.attribution import explain

    options = {name: getattr(arguments, name) for name in ("label", "window", "output", "fps")}
    found = explain(arguments.adapter, arguments.video, source=source(arguments), **options)
    if found.damaged:
        print(f"damaged: {found.damaged}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print(f"{found}\nPicture saved to {Path(arguments.output).resolve()}")
    return 0
