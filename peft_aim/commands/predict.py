"""``peft-aim predict``: classify videos with one or several adapters."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "predict",
        "Classify videos with one or several adapters, on the backbone recorded in them.",
        "peft-aim predict my-task video.mp4 --adapter other-task",
    )
    parser.add_argument("first", metavar="ADAPTER", help="folder or Hub id of the adapter (optional with --adapter)")
    parser.add_argument(
        "others", nargs="*", metavar="VIDEO", help="videos to classify: files, URLs, or folders of images"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        help="another adapter for the same backbone; can be repeated",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes to show per video (default: 5)")
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="length of the sliding window over long videos, 0 to classify each video as a whole (default: the "
        "typical length of the training videos)",
    )
    parser.add_argument(
        "--output", default="predictions", metavar="DIR", help="folder for film strips (default: predictions)"
    )
    parser.add_argument(
        "--fps", type=float, metavar="X", help="frames per second of folders of images (default: as in training)"
    )
    parser.add_argument("--json", action="store_true", help="print the predictions as JSON")
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the predictions; return 1 if no video can be read."""
    from peft_aim.video.data import Remarks
    from peft_aim.video.predict import predict

    adapters, videos = _sorted([arguments.first, *arguments.others], arguments.adapter)
    options = {name: getattr(arguments, name) for name in ("top_k", "window", "output", "fps")}
    found = predict(adapters, videos, source=source(arguments), **options)
    readable = [prediction for prediction in found if not prediction.broken]
    remarks = Remarks()
    remarks.add({"hdr": [str(prediction.video) for prediction in found if prediction.hdr]})
    lines = [str(prediction) for prediction in found if prediction.broken]
    lines += [f"damaged: {prediction.damaged}" for prediction in found if prediction.damaged]
    for line in dict.fromkeys(lines + [f"Note: {note}" for note in remarks.notes()]):  # once, for several adapters
        print(line, file=sys.stderr)
    if arguments.json:
        print(json.dumps([asdict(prediction) for prediction in found], indent=2, default=str))
    else:
        for prediction in readable:
            print(f"{prediction.adapter}: {prediction}" if len(adapters) > 1 else prediction)
        if readable:
            print(f"Film strips saved to {Path(arguments.output).resolve()}")
    return 0 if readable else 1


def _sorted(paths: list[str], further: list[str]) -> tuple[list[str], list[str]]:
    """Separate adapters from videos: the first path is an adapter, unless it is a file and ``--adapter`` is given.

    Raises:
        ValueError: If no video is given.
    """
    if further and Path(paths[0]).is_file():
        return further, paths
    if len(paths) < 2:
        raise ValueError(
            f"{paths[0]} is read as the adapter, and no video follows. Give the adapter, then one or more videos."
        )
    return [paths[0], *further], paths[1:]
