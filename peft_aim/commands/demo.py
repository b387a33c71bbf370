"""``peft-aim demo``: train, evaluate and swap adapters on generated videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from peft_aim.commands.arguments import Commands, new_command


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "demo",
        "Generate videos for two tasks that no single frame can solve, train an adapter for each on a small image "
        "transformer, and swap the adapters.",
        "peft-aim demo --output peft-aim-demo",
    )
    parser.add_argument(
        "--output", default="peft-aim-demo", metavar="DIR", help="folder for all files (default: peft-aim-demo)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    from peft_aim.video.demo import demo

    demo(Path(arguments.output))
    return 0
