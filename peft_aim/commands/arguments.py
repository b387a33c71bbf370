"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

Commands = Any  # what argparse returns for subcommands has no public name


def new_command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a command with a summary and an example in its help."""
    return commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"example: {example}",
    )


def add_backbone(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add what says where the image model comes from."""
    name = "name of timm, folder or Hub id of transformers, torchvision:NAME or open_clip:NAME/WEIGHTS"
    default = "" if required else "; by default what the adapter names"
    group = parser.add_argument_group("image model")
    group.add_argument("--model", required=required, metavar="NAME", help=name + default)
    group.add_argument("--weights", metavar="FILE", help="file of weights, instead of downloading them")
    group.add_argument("--model-class", metavar="CLASS", help="class of transformers to load it with")
    group.add_argument("--revision", help="state of its Hub repository")
    group.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="images of another size than it was trained on"
    )


def source(arguments: argparse.Namespace) -> Any:
    """Return where the image model comes from, None if no model is given."""
    from peft_aim.video.backbones import Source

    if arguments.model is None:
        if arguments.weights or arguments.model_class or arguments.revision or arguments.image_size:
            raise ValueError(
                "--weights, --model-class, --revision and --image-size go with --model. Name the image model, too."
            )
        return None
    names = [option.name for option in fields(Source) if option.name in arguments]  # some cannot be random
    return Source(**{name: getattr(arguments, name) for name in names})


def add_videos(parser: argparse.ArgumentParser) -> None:
    """Add what says where labelled videos are."""
    parser.add_argument(
        "videos",
        help="folder with SPLIT/<class>/*; or list with lines 'path label'; or .csv with path, label (, split)",
    )
    parser.add_argument("--root", help="where the paths in a list begin; by default its own folder")


def views(text: str) -> tuple[int, int]:
    """Read a number of clips and crops, "3x3".

    Example:
        >>> views("3x1")
        (3, 1)
    """
    clips, _, crops = text.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise argparse.ArgumentTypeError(f"{text!r} is not CLIPSxCROPS, 3x1 for example")
    return int(clips), int(crops)
