"""``peft-aim demo``: the whole way, on videos that it draws itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from peft_aim.commands.arguments import Commands, new_command


def add(commands: Commands) -> None:
    """Say what it takes."""
    parser = new_command(
        commands,
        "demo",
        "Draw videos of two tasks that need time, adapt a small image transformer to both, swap the adapters.",
        "peft-aim demo --output peft-aim-demo",
    )
    parser.add_argument("--output", default="peft-aim-demo", help="folder for all that it makes")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    from peft_aim.video.demo import demo

    demo(Path(arguments.output))
    return 0
