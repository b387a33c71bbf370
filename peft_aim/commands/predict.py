"""``peft-aim predict``: what videos show, by one adapter or several."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source


def add(commands: Commands) -> None:
    """Say what it takes."""
    parser = new_command(
        commands,
        "predict",
        "Predict the classes of videos; nothing is needed but the adapter.",
        "peft-aim predict my-task video.mp4 --adapter other-task",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="ADAPTER VIDEO", help="folder or Hub id of the adapter, then videos"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        help="a further adapter of the same backbone; can be given repeatedly",
    )
    parser.add_argument("--top-k", type=int, default=5, help="classes to tell (default: 5)")
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="window over long videos; by default the typical length of a training video; 0: each video as a whole",
    )
    parser.add_argument("--output", default="predictions", metavar="DIR", help="folder for strips of frames")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Predict; return 1 if no video could be read."""
    from peft_aim.video.predict import predict

    adapters, videos = _sorted(arguments.paths, arguments.adapter)
    options = {name: getattr(arguments, name) for name in ("top_k", "window", "output")}
    found = predict(adapters, videos, source=source(arguments), **options)
    readable = [prediction for prediction in found if not prediction.broken]
    for prediction in found:
        if prediction.broken:
            print(prediction, file=sys.stderr)
    if arguments.json:
        print(json.dumps([asdict(prediction) for prediction in readable], indent=2, default=str))
    else:
        for prediction in readable:
            print(f"{prediction.adapter}: {prediction}" if len(adapters) > 1 else prediction)
        if readable:
            print(f"Pictures: {Path(arguments.output).resolve()}")
    return 0 if readable else 1


def _sorted(paths: list[str], further: list[str]) -> tuple[list[str], list[str]]:
    """Tell adapters from videos: the first path is an adapter, unless it is a file and others are given.

    Raises:
        ValueError: If there is no video.
    """
    if further and Path(paths[0]).is_file():
        return further, paths
    if len(paths) < 2:
        raise ValueError(f"{paths[0]} is taken for the adapter. Give it first, then one video or several.")
    return [paths[0], *further], paths[1:]
