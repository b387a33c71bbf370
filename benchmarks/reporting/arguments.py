"""Command-line options shared by the larger benchmarks: the output folder, and a quick run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.record import RESULTS


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, str]:
    """Add ``--output`` and ``--quick`` to a parser, parse the command line and create the output folder.

    Returns:
        The options, and the command as typed.
    """
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="run a minimal version, to check that everything runs")
    given = parser.parse_args(argv)
    if given.quick and given.output.resolve() == RESULTS:
        parser.error(f"--quick would overwrite the results in {given.output}. Pass another folder with --output.")
    given.output.mkdir(parents=True, exist_ok=True)
    return given, " ".join(["python -m", parser.prog, *(sys.argv[1:] if argv is None else argv)])
