"""What the larger benchmarks are told on the command line: where results go, and whether it is only a try."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.record import RESULTS


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, str]:
    """Read the options, ``--output`` and ``--quick`` besides the parser's own, and make the folder.

    Returns:
        The options, and the command as it was typed.
    """
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="next to nothing of it: to see that all of it runs")
    given = parser.parse_args(argv)
    if given.quick and given.output.resolve() == RESULTS:
        parser.error("--quick would overwrite the results. Give it another folder by --output.")
    given.output.mkdir(parents=True, exist_ok=True)
    return given, " ".join(["python -m", parser.prog, *(sys.argv[1:] if argv is None else argv)])
