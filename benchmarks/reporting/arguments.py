"""Command-line options shared by the larger benchmarks: the output folder, and a quick run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.record import RESULTS


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, others: Sequence[str] = ()
) -> tuple[argparse.Namespace, str]:
    """Add ``--output`` and ``--quick`` to a parser, parse the command line and create the output folder.

    Args:
        parser: The parser with the benchmark's own options.
        argv: The command line arguments; ``sys.argv[1:]`` if None.
        others: Options with which something other than the published results is measured.

    Returns:
        The options, and the command as typed.
    """
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="run a minimal version, to check that everything runs")
    given = parser.parse_args(argv)
    keep_published(parser, given, ("quick", *others))
    given.output.mkdir(parents=True, exist_ok=True)
    return given, " ".join(["python -m", parser.prog, *(sys.argv[1:] if argv is None else argv)])


def keep_published(parser: argparse.ArgumentParser, given: argparse.Namespace, options: Sequence[str]) -> None:
    """Exit with an error if one of these options is given and the published results would be overwritten."""
    changed = [f"--{name}" for name in options if getattr(given, name)]
    if changed and given.output.resolve() == RESULTS:
        parser.error(f"{changed[0]} would overwrite the results in {given.output}. Pass another folder with --output.")
