"""``peft-aim inspect``: which blocks of a model get which adapters, before any weights are loaded."""

from __future__ import annotations

import argparse
import warnings

from peft_aim.commands.arguments import Commands, new_command


def add(commands: Commands) -> None:
    """Say what it takes."""
    parser = new_command(
        commands,
        "inspect",
        "Show which blocks of an image model AIM adapts, how they attend along time, what is left out.",
        "peft-aim inspect swinv2_tiny_window8_256",
    )
    parser.add_argument(
        "model",
        help="a name of timm, a folder or id of transformers, torchvision:NAME or open_clip:NAME; without weights",
    )
    parser.add_argument("--frames", type=int, default=8, help="frames per clip (default: 8)")
    parser.add_argument("--temporal-adapters", type=int, default=1, help="1 (default) or 2, as in AIMConfig")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the map."""
    from peft import get_peft_model

    from peft_aim import AIMConfig
    from peft_aim.backbone import build_untrained

    warnings.filterwarnings("ignore", "AIM adapts")  # the map says it, too
    config = AIMConfig(num_frames=arguments.frames, temporal_adapters=arguments.temporal_adapters)
    get_peft_model(build_untrained(arguments.model), config).print_adapted_blocks()
    return 0
