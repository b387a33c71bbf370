"""``peft-aim watch``: classify what a camera, a stream or a growing file shows now."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing

from peft_aim.commands.arguments import Commands, add_backbone, new_command, source


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "watch",
        "Classify live video while it lasts: a camera, a stream, or a file that may still be written to.",
        "peft-aim watch my-task rtsp://camera/stream",
    )
    parser.add_argument("adapter", help="folder or Hub id of the adapter")
    parser.add_argument(
        "source",
        help="camera (0 or /dev/video0), URL that FFmpeg takes (rtsp, http, tcp, udp, ...), file, or - for standard "
        "input",
    )
    parser.add_argument(
        "--window",
        action="store_true",
        help="score a sliding window anew for each frame: for adapters that are not causal, and for classes that "
        "differ in the order of frames, which a stream that runs on hardly tells",
    )
    parser.add_argument(
        "--fps", type=float, metavar="X", help="frames to take per second (default: as in the clips of training)"
    )
    parser.add_argument("--top-k", type=int, default=3, metavar="K", help="classes to show (default: 3)")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="print a line at least this often (default: only when the most probable class changes, of numbers 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, an object per line, the last the summary")
    parser.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time without an answer after which a stream has broken off, or without writing after which a file has "
        "ended (default: 10)",
    )
    parser.add_argument(
        "--retry",
        type=int,
        default=10,
        metavar="N",
        help="tries in a row to open a camera or a stream again that has broken off (default: 10)",
    )
    parser.add_argument(
        "--live",
        action=argparse.BooleanOptionalAction,
        help="play the source in real time, and skip frames that the model has no time for (default: of cameras and "
        "streams only)",
    )
    add_backbone(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what the source shows until it ends, and a summary, also after Ctrl-C."""
    from peft_aim.video.live.printing import Printer
    from peft_aim.video.live.watch import watch

    if arguments.every is not None and arguments.every <= 0:
        raise ValueError(f"--every {arguments.every:g} is not positive. Give the seconds between two lines.")
    options = {name: getattr(arguments, name) for name in ("top_k", "window", "fps", "timeout", "retry", "live")}
    watched = watch(arguments.adapter, arguments.source, backbone=source(arguments), **options)
    printer = Printer(arguments.every, arguments.json)
    try:
        with closing(iter(watched)) as events:
            for event in events:
                printer.show(event)
    except BrokenPipeError:  # whoever reads the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which is flushed once more at the end
        return 0
    finally:
        printer.end(watched.summary)
    return 0
