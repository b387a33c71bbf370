"""Arguments shared by several commands."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

Commands = Any  # argparse has no public name for the type that add_subparsers returns


class Parser(argparse.ArgumentParser):
    """A parser that takes options between the positional arguments of a command, too.

    Example:
        >>> parser = Parser()
        >>> _, _ = parser.add_argument("--json", action="store_true"), parser.add_argument("paths", nargs="+")
        >>> parser.parse_args(["a", "--json", "b"]).paths
        ['a', 'b']
    """

    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None, **options: Any) -> Any:
        """Parse options first, then what is left; argparse cannot do so for a parser with commands."""
        if self._is_mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace, **options)
        self._is_mixing = True  # parse_known_intermixed_args calls this method
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False


def with_safe_paths(argv: list[str]) -> list[str]:
    """Return arguments without "--", after which all are paths, even if they begin with a dash.

    Example:
        >>> with_safe_paths(["predict", "my-task", "--json", "--", "-1.mp4"])
        ['predict', 'my-task', '--json', './-1.mp4']
    """
    if "--" not in argv:
        return argv
    split = argv.index("--")
    return argv[:split] + [f"./{path}" if path.startswith("-") else path for path in argv[split + 1 :]]


def new_command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a command whose help shows a summary and an example."""
    return commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].rstrip("."),
        description=summary,
        epilog=f"example: {example}",
    )


def add_backbone(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the arguments that select the backbone."""
    name = "timm model name, folder or Hub id of a transformers model, torchvision:NAME or open_clip:NAME/WEIGHTS"
    recorded = "as recorded in the adapter"
    group = parser.add_argument_group("backbone")
    group.add_argument(
        "--model", required=required, metavar="NAME", help=name if required else f"{name} (default: {recorded})"
    )
    group.add_argument("--weights", metavar="FILE", help="load the weights from this file instead of downloading them")
    group.add_argument(
        "--model-class",
        metavar="CLASS",
        help="transformers class to load the backbone with (default: "
        f"{'AutoModelForImageClassification' if required else recorded})",
    )
    group.add_argument("--revision", help="branch, tag or commit of a transformers Hub repository")
    group.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help=f"height and width of the images (default: {'as in pretraining' if required else recorded})",
    )


def source(arguments: argparse.Namespace) -> Any:
    """Return where to load the backbone from, None if ``--model`` is not given."""
    from peft_aim.video.backbones import Source

    if arguments.model is None:
        if arguments.weights or arguments.model_class or arguments.revision or arguments.image_size:
            raise ValueError(
                "--weights, --model-class, --revision and --image-size need --model. Give the backbone with --model "
                "NAME."
            )
        return None
    names = [option.name for option in fields(Source) if option.name in arguments]  # only train has --random-weights
    return Source(**{name: getattr(arguments, name) for name in names})


def add_videos(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that locate labeled videos."""
    parser.add_argument(
        "videos",
        help="folder with SPLIT/<class>/*, text file with lines 'path label', table (.csv, .tsv) with columns path, "
        "label and, optionally, split, start and end (seconds of a segment), or the split files of UCF101, HMDB51, "
        "Kinetics, Jester or Something-Something; videos are files or folders of frames",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder that paths in a list or table are relative to (default: that of the file)",
    )


def views(text: str) -> tuple[int, int]:
    """Parse the number of clips and crops, "3x3".

    Example:
        >>> views("3x1")
        (3, 1)
    """
    clips, _, crops = text.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CLIPSxCROPS. Give 3x1, for example")
    return int(clips), int(crops)
