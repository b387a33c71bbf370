"""``peft-aim train``: an adapter from a folder of videos."""

from __future__ import annotations

import argparse
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from peft_aim.commands.arguments import Commands, add_backbone, add_videos, new_command, source, views
from peft_aim.video.recipe import CHOICES, PRESETS, Recipe, preset


def add(commands: Commands) -> None:
    """Say what it takes: an option for each field of a recipe, and some more."""
    parser = new_command(
        commands,
        "train",
        "Train an adapter on videos.",
        "peft-aim train videos --model vit_base_patch16_clip_quickgelu_224.openai --output my-task",
    )
    add_videos(parser)
    parser.add_argument("--val", metavar="LIST", help="list or .csv of the videos to evaluate on, if VIDEOS is a list")
    parser.add_argument(
        "--classes", metavar="FILE", help="names of the classes, one in each line, for labels 0, 1 ..."
    )
    parser.add_argument("--output", metavar="DIR", help="folder for the adapter, report.json and confusion.png")
    parser.add_argument(
        "--check", action="store_true", help="open all videos before training, to know the broken ones"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT")
    parser.add_argument("--overwrite", action="store_true", help="write to OUTPUT although something is in it")
    parser.add_argument("--synthetic", action="store_true", help="only see how fast the model trains, on noise")
    add_backbone(parser, required=True)
    parser.add_argument("--random-weights", action="store_true", help="freeze a backbone of noise, for trying out")
    group = parser.add_argument_group("recipe", "defaults are those without --recipe")
    group.add_argument("--recipe", choices=PRESETS, help="the paper's settings; the options below change them")
    for option in fields(Recipe):
        group.add_argument(f"--{option.name.replace('_', '-')}", **_kind(option), help=_help(option))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print what came out."""
    from peft_aim.video.data import Data, read_names
    from peft_aim.video.processes import say
    from peft_aim.video.training import measure_speed, train

    changes = {option.name: getattr(arguments, option.name) for option in fields(Recipe) if option.name in arguments}
    recipe = preset(arguments.recipe, **changes) if arguments.recipe else Recipe(**changes)
    if "flip_pairs" in changes and not recipe.flip:
        raise ValueError("--flip-pairs says what mirrored clips show, but none is mirrored. Give --flip, too.")
    names = read_names(arguments.classes) if arguments.classes else None
    data = Data.find(arguments.videos, arguments.val, arguments.root, names)
    if arguments.synthetic:
        say(f"On noise: {measure_speed(data, source(arguments), recipe)}")
        return 0
    if arguments.output is None:
        raise ValueError("Say where the adapter is to be saved with --output DIR.")
    flags = {"check": arguments.check, "resume": arguments.resume, "overwrite": arguments.overwrite}
    _, report = train(data, source(arguments), arguments.output, recipe, **flags)
    say(f"\n{report}\n\nThe adapter is in {Path(arguments.output).resolve()}")
    return 0


def _kind(option: Field) -> dict[str, Any]:
    """Return how an option of the recipe is read; what is not given is not there."""
    kinds: dict[str, dict[str, Any]] = {
        "int": {"type": int},
        "float": {"type": float},
        "bool": {"action": argparse.BooleanOptionalAction},
        "int | None": {"type": _int_or_none, "metavar": "N|none"},
        "tuple[float, float]": {"type": float, "nargs": 2, "metavar": ("LEAST", "GREATEST")},
        "tuple[int, int] | None": {"type": int, "nargs": 2, "metavar": ("NUMBER", "STRENGTH")},
        "tuple[int, int]": {"type": views, "metavar": "CLIPSxCROPS"},
        "tuple[tuple[int | str, int | str], ...]": {"type": _pair, "nargs": "+", "metavar": "LEFT=RIGHT"},
    }
    kind = {"choices": [*filter(None, CHOICES[option.name])]} if option.name in CHOICES else kinds[option.type]
    return {"default": argparse.SUPPRESS, "dest": option.name, **kind}


def _help(option: Field) -> str:
    """Return what the recipe's docstring says of an option, and its default."""
    text = re.search(rf"^        {option.name}: (.*?)(?=^        \w+: |^    Raises)", Recipe.__doc__, re.M | re.S)[1]
    default = "" if option.default in (MISSING, None, (), False) else f" (default: {option.default})"
    return (" ".join(text.split()).rstrip(".") + default).replace("%", "%%")


def _int_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _pair(text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT=RIGHT, '86=87' or 'turn left=turn right' for example")
    return left, right
