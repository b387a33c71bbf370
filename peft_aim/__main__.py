"""The command ``peft-aim``."""

from __future__ import annotations

import argparse
import sys
import warnings

from peft_aim.commands import convert, demo, evaluate, inspect, predict, train


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 1 after an error that the user can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    # peft 0.21 asks transformers 5.23 for this property under its old name
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        return arguments.run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("peft_aim"):
            raise
        print(f"peft-aim {arguments.command} needs {error.name}: pip install 'peft-aim[video]'", file=sys.stderr)
    except ValueError as error:
        print(f"peft-aim {arguments.command}: {error}", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        print(
            f"\npeft-aim {arguments.command}: interrupted{f'; {interrupt}' if str(interrupt) else ''}", file=sys.stderr
        )
        return 130  # as shells do
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peft-aim", description="Adapt image transformers to video (AIM).")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (train, evaluate, predict, convert, inspect, demo):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
