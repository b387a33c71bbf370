"""``peft-aim inspect``: show which blocks of a model get which adapters, without loading its weights."""

from __future__ import annotations

import argparse
import warnings

from peft_aim.commands.arguments import Commands, new_command
from peft_aim.config import TEMPORAL


def add(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = new_command(
        commands,
        "inspect",
        "Show which blocks of a backbone AIM adapts or skips, and how information passes between frames, without "
        "loading weights.",
        "peft-aim inspect swinv2_tiny_window8_256",
    )
    parser.add_argument(
        "model",
        help="timm model name, folder or Hub id of a transformers model, torchvision:NAME or open_clip:NAME",
    )
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="frames per clip (default: 8)")
    parser.add_argument(
        "--temporal",
        choices=TEMPORAL,
        default="attention",
        help="how information passes between frames: attention (default), conv, a convolution over time, or auto, "
        "attention where it can run over time",
    )
    parser.add_argument("--causal", action="store_true", help="let frames get information from earlier frames only")
    parser.add_argument(
        "--temporal-adapters", type=int, default=1, metavar="N", help="temporal adapters per block: 1 (default) or 2"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the adapted blocks."""
    from peft import get_peft_model

    from peft_aim import AIMConfig
    from peft_aim.backbone import build_untrained

    warnings.filterwarnings("ignore", "AIM adapts")  # the printed table lists skipped blocks, too
    options = {name: getattr(arguments, name) for name in ("temporal", "causal", "temporal_adapters")}
    config = AIMConfig(num_frames=arguments.frames, **options)
    get_peft_model(build_untrained(arguments.model), config).print_adapted_blocks()
    return 0
