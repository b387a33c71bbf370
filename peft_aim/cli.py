"""The command ``peft-aim``."""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import fields
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 1 after an error that the user can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    # peft 0.21 asks transformers 5.23 for this property under its old name
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        return arguments.run(arguments)
    except ModuleNotFoundError as error:
        print(f"peft-aim {arguments.command} needs {error.name}: pip install 'peft-aim[video]'", file=sys.stderr)
    except ValueError as error:
        print(f"peft-aim {arguments.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\npeft-aim {arguments.command}: interrupted", file=sys.stderr)
        return 130  # as shells do
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peft-aim", description="Adapt image transformers to video (AIM).")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_inspect(commands)
    _add_train(commands)
    _add_demo(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show which blocks of a model get which adapters",
        description="Show which blocks of an image model AIM adapts, how they attend along time, what is left out.",
        epilog="example: peft-aim inspect swinv2_tiny_window8_256",
    )
    parser.add_argument(
        "model",
        help="a name of timm, a folder or id of transformers, torchvision:NAME or open_clip:NAME; without weights",
    )
    parser.add_argument("--frames", type=int, default=8, help="frames per clip (default: 8)")
    parser.add_argument("--temporal-adapters", type=int, default=1, help="1 (default) or 2, as in AIMConfig")
    parser.set_defaults(run=_inspect)


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="train an adapter on a folder of videos",
        description="Train an adapter on ROOT/{train,val}/<class>/*.mp4.",
        epilog="example: peft-aim train videos --model vit_base_patch16_clip_224.openai --output my-task",
    )
    parser.add_argument("root", help="folder with train/<class>/* and val/<class>/*")
    parser.add_argument(
        "--model", required=True, help="image model: a name of timm, or a folder or id of transformers"
    )
    parser.add_argument("--output", required=True, help="folder for the adapter and report.json")
    parser.add_argument("--weights", help="file of weights for a model of timm, instead of downloading them")
    parser.add_argument("--random-weights", action="store_true", help="freeze a backbone of noise, for trying out")
    parser.add_argument("--overwrite", action="store_true", help="write to OUTPUT although something is in it")
    for option in ("frames", "stride", "epochs", "batch-size", "workers", "seed"):
        parser.add_argument(f"--{option}", type=int)
    for option in ("lr", "weight-decay", "drop-path"):
        parser.add_argument(f"--{option}", type=float)
    parser.add_argument("--crop-scale", type=float, nargs=2, metavar=("LEAST", "GREATEST"))
    parser.add_argument("--flip", action="store_true", help="mirror clips; not if classes tell left from right")
    parser.set_defaults(run=_train)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="pretrain, adapt to two tasks that need time, swap the adapters",
        description="Draw videos of two tasks that need time, adapt a small image transformer to both, swap.",
        epilog="example: peft-aim demo --output peft-aim-demo",
    )
    parser.add_argument("--output", default="peft-aim-demo", help="folder for all that it makes")
    parser.set_defaults(run=_demo)


def _inspect(arguments: argparse.Namespace) -> int:
    from peft import get_peft_model

    from peft_aim import AIMConfig
    from peft_aim.untrained import untrained

    warnings.filterwarnings("ignore", "AIM adapts")  # the map says it, too
    config = AIMConfig(num_frames=arguments.frames, temporal_adapters=arguments.temporal_adapters)
    get_peft_model(untrained(arguments.model), config).print_adapted_blocks()
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from peft_aim.video.train import Recipe, train  # heavy, and only there with the extra

    given = {option.name: getattr(arguments, option.name) for option in fields(Recipe)}
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    _, report = train(
        arguments.root,
        arguments.model,
        arguments.output,
        recipe,
        weights=arguments.weights,
        random_weights=arguments.random_weights,
        overwrite=arguments.overwrite,
    )
    print(f"\n{report.trained_parameters:,} parameters trained, saved to {Path(arguments.output).resolve()}")
    if report.accuracy is not None:
        print(f"top-1 {report.accuracy:.1%} on {report.videos} videos of val, {len(report.classes)} classes")
    for note in report.notes:
        print(f"Note: {note}")
    if report.skipped:
        print(f"Files skipped: {len(report.skipped)}")
        for reason in report.skipped.values():
            print(f"  {reason}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from peft_aim.video.demo import demo

    demo(Path(arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
