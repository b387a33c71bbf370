"""``peft-aim train``: train an adapter on labeled videos."""

from __future__ import annotations

import argparse
import re
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from peft_aim.commands.arguments import Commands, add_backbone, add_videos, new_command, source, views
from peft_aim.video.problem_type import PROBLEM_TYPES
from peft_aim.video.recipe import CHOICES, PRESETS, Recipe, preset


def add(commands: Commands) -> None:
    """Add the command and its arguments: one option for each field of a recipe, and some more."""
    parser = new_command(
        commands,
        "train",
        "Train an adapter on labeled videos, evaluate it and save it.",
        "peft-aim train videos --model vit_base_patch16_clip_quickgelu_224.openai --output my-task",
    )
    _add_videos(parser)
    _add_output(parser)
    _add_backbone(parser)
    _add_recipe(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train an adapter and print the report."""
    from peft_aim.video.data import Data, read_names
    from peft_aim.video.processes import say
    from peft_aim.video.training import measure_speed, train

    changes = {option.name: getattr(arguments, option.name) for option in fields(Recipe) if option.name in arguments}
    recipe = preset(arguments.recipe, **changes) if arguments.recipe else Recipe(**changes)
    if "flip_pairs" in changes and not recipe.flip:
        raise ValueError("--flip-pairs is given without --flip, so no clip is flipped. Add --flip.")
    names = read_names(arguments.classes) if arguments.classes else None
    data = Data.find(arguments.videos, arguments.val, arguments.root, names, arguments.problem_type)
    for summary in data.summary:
        say(summary)
    if arguments.synthetic:
        say(f"On random clips: {measure_speed(data, source(arguments), recipe)}")
        return 0
    if arguments.output is None:
        raise ValueError("--output is missing. Give the folder to save the adapter to with --output DIR.")
    flags = {
        "check": arguments.check,
        "resume": arguments.resume,
        "overwrite": arguments.overwrite,
        "log": arguments.log,
    }
    _, report = train(data, source(arguments), arguments.output, recipe, **flags)
    say(f"\n{report}\n\nAdapter saved to {Path(arguments.output).resolve()}")
    return 0


def _add_videos(parser: argparse.ArgumentParser) -> None:
    add_videos(parser)
    parser.add_argument(
        "--val",
        metavar="LIST",
        help="list, table or folder of the videos to evaluate on, if the argument videos has no val split",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names, one per line, for videos labeled 0, 1, ...; of regression, what the numbers are called",
    )
    parser.add_argument(
        "--problem-type",
        choices=PROBLEM_TYPES,
        help="what labels are: one class per video, several, separated by | or in several rows, or numbers (default: "
        "several classes if a video has several labels, else one)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", help="folder for the adapter, its model card and the results")
    parser.add_argument("--check", action="store_true", help="open all videos before training and report broken ones")
    parser.add_argument("--resume", action="store_true", help="resume from the last complete checkpoint in --output")
    parser.add_argument("--overwrite", action="store_true", help="write to --output even if it is not empty")
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="NAME",
        help="log loss, learning rate and the results on val to tensorboard, wandb, mlflow or another program that "
        "transformers supports; repeat it for several",
    )
    parser.add_argument(
        "--synthetic", action="store_true", help="measure training speed on random clips; nothing is saved"
    )


def _add_backbone(parser: argparse.ArgumentParser) -> None:
    add_backbone(parser, required=True)
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="freeze a backbone with random weights, to try training out: they are not saved, so the adapter is of no "
        "use afterwards",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("recipe", "The defaults shown are those without --recipe.")
    group.add_argument(
        "--recipe", choices=PRESETS, help="start from the paper's settings; the options below override them"
    )
    for option in fields(Recipe):
        group.add_argument(f"--{option.name.replace('_', '-')}", **_kind(option), help=_help(option))


def _kind(option: Field) -> dict[str, Any]:
    """Return the argparse settings of a recipe option; one that is not given stays out of the namespace."""
    kinds: dict[str, dict[str, Any]] = {
        "int": {"type": int, "metavar": "N"},
        "float": {"type": float, "metavar": "X"},
        "bool": {"action": argparse.BooleanOptionalAction},
        "bool | None": {"action": argparse.BooleanOptionalAction},
        "str | tuple[int, ...] | None": {"type": _layers, "metavar": "even|odd|N,N,..."},
        "float | None": {"type": _float_or_none, "metavar": "X|none"},
        "int | None": {"type": _int_or_none, "metavar": "N|none"},
        "tuple[float, float]": {"type": float, "nargs": 2, "metavar": ("MIN", "MAX")},
        "tuple[int, int] | None": {"type": int, "nargs": 2, "metavar": ("NUMBER", "MAGNITUDE")},
        "tuple[int, int]": {"type": views, "metavar": "CLIPSxCROPS"},
        "tuple[tuple[int | str, int | str], ...]": {"type": _pair, "nargs": "+", "metavar": "LEFT=RIGHT"},
    }
    kind = {"choices": [*filter(None, CHOICES[option.name])]} if option.name in CHOICES else kinds[option.type]
    return {"default": argparse.SUPPRESS, "dest": option.name, **kind}


def _help(option: Field) -> str:
    """Return the description of an option in the recipe's docstring, and its default."""
    text = re.search(rf"^        {option.name}: (.*?)(?=^        \w+: |^    Raises)", Recipe.__doc__, re.M | re.S)[1]
    text = text[0].lower() + " ".join(text.split())[1:].rstrip(".")
    return (text + _default(option)).replace("%", "%%")


def _default(option: Field) -> str:
    """Return the default of an option as the command line takes it; none is shown for flags and pairs."""
    if option.default is MISSING or option.default is None or option.default is False or option.default == ():
        return ""
    if isinstance(option.default, tuple):
        return f" (default: {('x' if option.name == 'views' else ' ').join(map(str, option.default))})"
    return f" (default: {option.default})"


def _int_or_none(text: str) -> int | None:
    return None if text == "none" else int(text)


def _float_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def _layers(text: str) -> str | tuple[int, ...] | None:
    if text in ("even", "odd", "none"):
        return None if text == "none" else text
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not even, odd, or indices of blocks such as 0,2,4") from None


def _pair(text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not of the form LEFT=RIGHT. Give 'turn left=turn right' or 86=87, for example"
        )
    return left, right
