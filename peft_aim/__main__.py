"""The command line interface, ``peft-aim``."""

from __future__ import annotations

import difflib
import errno
import io
import sys
import warnings

from safetensors import SafetensorError

from peft_aim.commands import convert, demo, embed, evaluate, explain, export, inspect, predict, train, watch
from peft_aim.commands.arguments import Parser, with_safe_paths
from peft_aim.files import NO_ROOM

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "watch": watch,
    "embed": embed,
    "export": export,
    "explain": explain,
    "convert": convert,
    "inspect": inspect,
    "demo": demo,
}
# What to install for a missing package, if not the extra "video".
INSTALLED_BY = {
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "'peft-aim[export]'"),
    "torchao": "torchao",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The command line arguments; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0 on success, 1 after an error that the user can fix (a full disk is one), 2 if no command or an
        unknown one is given, 130 after Ctrl-C.

    Raises:
        SystemExit: If argparse ends the program: with 0 after ``--help``, with 2 after wrong arguments.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files and classes may have characters that a console lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser, argv = _parser(), sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(f"peft-aim: {_unknown(argv[0])}", file=sys.stderr)
        return 2
    arguments = parser.parse_args(with_safe_paths(argv))
    # transformers 5.23 warns about the deprecated name by which peft 0.21 reads this property
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    try:
        return arguments.run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("peft_aim"):
            raise
        package = INSTALLED_BY.get(error.name, "'peft-aim[video]'")
        print(f"peft-aim {arguments.command} needs {error.name}: pip install {package}", file=sys.stderr)
    except (ValueError, OSError, SafetensorError) as error:
        print(f"peft-aim {arguments.command}: {_reason(error)}", file=sys.stderr)
    except KeyboardInterrupt as interrupt:
        print(
            f"\npeft-aim {arguments.command}: interrupted{f'; {interrupt}' if str(interrupt) else ''}", file=sys.stderr
        )
        return 130  # as shells do
    return 1


def _parser() -> Parser:
    parser = Parser(
        prog="peft-aim",
        description="Adapt pretrained image transformers to video with AIM adapters, saved as PEFT adapters.",
        epilog="'peft-aim COMMAND --help' shows the options of a command.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add(commands)
    return parser


def _reason(error: Exception) -> str:
    """Return the message of an error; of the system's own, the file, what is wrong with it and what to do."""
    if not (isinstance(error, OSError) and error.errno and error.strerror):
        return str(error)
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{error.strerror}. {_advice(error.errno)}"


def _advice(number: int) -> str:
    """Return what to do about an error of the system.

    Example:
        >>> _advice(errno.ENOENT)
        'Check the path.'
    """
    if number in NO_ROOM:
        return "Make room on its disk and allow writing there, or give another folder."
    if number in (errno.EACCES, errno.EPERM):
        return "Change its permissions, or give another path."
    return "Check the path."


def _unknown(name: str) -> str:
    """Return what to print for a command that doesn't exist."""
    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"The commands are {', '.join(COMMANDS)}."
    return f"there is no command {name!r}. {hint}"


if __name__ == "__main__":
    sys.exit(main())
