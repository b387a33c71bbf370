"""Does ``peft-aim explain`` find where and when something happens? ``python -m benchmarks.explain``.

Adapters are trained on drawn videos in which place and time of the event that decides are known. With ``--models``,
the trained models are kept there, and not trained again. It takes about ten minutes on one idle core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.explain.models import Plan, trained
from benchmarks.explain.scoring import by_order, explained
from benchmarks.explain.tables import page
from benchmarks.explain.videos import draw
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.reporting.tables import publish

QUICK = Plan(stills=64, pretraining=1, train=16, steps=1, test=12)
TEST_SEED = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Train, explain, and write ``explain.json`` and the table."""
    parser = argparse.ArgumentParser("benchmarks.explain", description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of the trained models (default: a temporary one)")
    given, command = parse(parser, argv)
    plan, tasks = QUICK if given.quick else Plan(), {}
    with tempfile.TemporaryDirectory() as temporary:
        models = trained(plan, given.models or Path(temporary))
    for task, model in models.items():
        drawn = draw(task, plan.test, held_out=True, seed=TEST_SEED)
        tasks[task] = {"orders": by_order(model, drawn), "rows": explained(model, drawn)}
    found = {"plan": asdict(plan), "tasks": tasks}
    print(record("explain", command, 0, given.output, **found))
    publish("explain", given.output, page(found))


if __name__ == "__main__":
    main()
