"""How early is a video recognized, and does causal attention cost accuracy? ``python -m benchmarks.early DATA``.

AIM is trained twice, bidirectional and causal, on the real tasks of ``benchmarks.real``, whose DATA it takes, and on
the synthetic one of ``benchmarks.accuracy``. All else is the same: backbone, learning rate, steps, seeds and clips.
Where the order of frames decides, a causal adapter is also trained, with one seed, on clips that follow others, as in
a stream that runs on. Each trial is appended to ``early.jsonl``, from which an interrupted run resumes; the trained
adapters are kept in ``early``, next to it. It takes about an hour on one idle core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.early.adapters import BIDIRECTIONAL, PRECEDED, ROWS, Setting, trained
from benchmarks.early.scoring import of_bidirectional, of_causal
from benchmarks.early.tables import publish
from benchmarks.early.tasks import Plan, Task, tasks
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.training.trials import Facts, Trials

QUICK = Plan(
    size=32, steps=1, batch=2, synthetic_steps=1, synthetic_batch=2, train=10, test=20, pretraining=1, seeds=1
)


def run(setting: Setting, task: Task, common: Facts, folder: Path) -> Facts:
    """Train an adapter, or load it, and score it over the part of each video that has passed."""
    model, facts = trained(setting, task, common, folder)
    began = time.perf_counter()
    facts |= of_bidirectional(model, task) if setting.row == BIDIRECTIONAL else of_causal(model, task)
    seconds = round(time.perf_counter() - began, 1)
    print(f"{setting}: scored in {seconds} s", flush=True)
    return {**facts, "seconds of scoring": seconds}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all trials and write the log, ``early.json``, a picture and the tables."""
    parser = argparse.ArgumentParser("benchmarks.early", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with signs, clips and weights")
    parser.add_argument("--seeds", type=int, help="number of seeds; those in the log are not run again")
    parser.add_argument("--logged", action="store_true", help="run no trials: make the tables of those in the log")
    given, command = parse(parser, argv)
    plan, folder = QUICK if given.quick else Plan(), given.output / "early"
    plan = replace(plan, seeds=given.seeds or plan.seeds)
    folder.mkdir(exist_ok=True)
    common = {name: value for name, value in asdict(plan).items() if name != "seeds"}
    trials, made = Trials(given.output / "early.jsonl", common), []
    found = list(tasks(plan, given.data, folder / "frames.pt"))
    wanted = [(seed, task, row) for seed in range(plan.seeds) for task in found for row in ROWS]
    wanted += [(0, task, PRECEDED) for task in reversed(found) if task.paired]  # the shortest first
    for seed, task, row in wanted:
        setting = Setting(row, task.name, task.rates[seed], seed)
        if not given.logged:
            trials.of(asdict(setting), lambda s=setting, t=task: run(s, t, common, folder))
        made += filter(None, [trials.find(asdict(setting))])
    groups = {task.name: task.groups for task in found}
    print(record("early", command, 0, given.output, plan=asdict(plan), groups=groups, trials=made))
    publish(given.output)


if __name__ == "__main__":
    main()
