"""Does AIM work on real videos with a pretrained backbone? ``python -m benchmarks.real DATA``.

DATA is a folder with ``signs`` and ``clips``, videos, and ``weights``, a ViT-Tiny; the project ships none of them. All
rows adapt the same backbone with the same steps and augmentation. A row's learning rate on a task is the best of a few
on five of the training people, after training on the others; nobody of val takes part in this choice. With a GPU,
training is longer, at 224 px, with five seeds, and writes ``real.json`` instead of ``real_cpu.json``. Each trial is
appended to ``real.jsonl``, from which an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.real.blur import blur
from benchmarks.real.costs import costs
from benchmarks.real.rows import AIM, BLIND, CHOICES, FRAMES, OVER_TIME, PAPERS_AIM, ROWS, SMALL, Row, backbone, rate
from benchmarks.real.tables import publish
from benchmarks.real.trial import Plan, Setting, prepare, run
from benchmarks.real.videos import Clips, decode, signs
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.training.trials import Facts, Trials
from peft_aim.video.recipe import Recipe

QUICK = Plan(size=32, steps=1, batch=2, seeds=1)
ON_GPU = Plan(size=224, steps=240, batch=8, seeds=5)
TUNED = ("signs", "order")  # tasks with learning rates of their own
PROCESSES = 16  # at most, since each holds a model, on the same GPU if there is one
LOOK = 20  # steps between the evaluations of a learning curve
HALF = 0.5  # of the steps, to choose learning rates
LONGER = 2  # how many times as many steps the paper's AIM gets to learn order


class Bench:
    """The trials of a plan, run by several processes.

    Args:
        plan: Sizes of the benchmark.
        data: Folder of the videos and weights.
        output: Folder of the log.
        logged: Whether to run no trials, and take those in the log.
        rows: Rows of the table.
    """

    def __init__(
        self, plan: Plan, data: Path, output: Path, logged: bool = False, rows: tuple[Row, ...] = ROWS
    ) -> None:
        self.plan, self.data, self.cached, self.logged = plan, data, output / "real_frames.pt", logged
        self.rows = rows
        decode(data, self.cached)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        common = {name: value for name, value in asdict(plan).items() if name != "seeds"}
        self.trials = Trials(output / "real.jsonl", common)
        self.rates: dict[str, dict[str, float]] = {task: {} for task in TUNED}

    def of(self, settings: Iterable[Setting]) -> list[Facts]:
        """Return the trials with these settings; those that are not in the log are run, or left out if ``logged``."""
        settings = list(settings)
        missing = [] if self.logged else [s for s in settings if self.trials.find(asdict(s)) is None]
        with ProcessPoolExecutor(min(PROCESSES, os.cpu_count()), get_context("spawn"), prepare) as pool:
            futures = {pool.submit(run, s, self.plan, self.data, self.cached, self.device): s for s in missing}
            for future in as_completed(futures):  # logged at once, in case of an interruption
                self.trials.add(asdict(futures[future]), future.result())
        return [trial for setting in settings if (trial := self.trials.find(asdict(setting)))]

    def choose_rates(self) -> dict[str, dict[str, dict[float, float]]]:
        """Choose learning rates on some of the training people, and return top-1 by task, row and rate."""
        grid = [(task, row.name, rate) for task in TUNED for row in self.rows for rate in row.rates]
        settings = [Setting(name, task, rate, development=True, longer=HALF) for task, name, rate in grid]
        found: dict[tuple[str, str], list[Facts]] = {}
        for trial in self.of(settings):
            found.setdefault((trial["settings"]["task"], trial["settings"]["row"]), []).append(trial)
        top1: dict[str, dict[str, dict[float, float]]] = {task: {} for task in TUNED}
        for (task, name), trials in found.items():
            best = max(trials, key=lambda trial: (trial["top1"], -trial["held_out_loss"]))
            self.rates[task][name] = best["settings"]["lr"]
            top1[task][name] = {trial["settings"]["lr"]: trial["top1"] for trial in trials}
        if self.rows is not ROWS:
            self.rates = {task: same_on_all_tasks(top1) for task in TUNED}
        lacking = [task for task in TUNED if AIM.name not in self.rates[task]]
        if lacking:
            raise SystemExit(
                f"{self.trials.path} has no trials with these settings that choose learning rates on {lacking[0]}. "
                "Run without --logged."
            )
        return top1

    def rate(self, row: Row, task: str) -> float:
        """Return the learning rate of a row: on tasks without a choice of their own, that of signs."""
        return rate(row, self.rates.get(task, self.rates["signs"]))

    def setting(self, row: Row, task: str, **options: Any) -> Setting:
        """Return the setting of a row with the learning rate chosen for it."""
        return Setting(row.name, task, self.rate(row, task), **options)

    def table(self) -> list[Setting]:
        """Return the settings of the table, the first seed first; that one is evaluated during training on order."""
        seeds = [(seed, row) for seed in range(self.plan.seeds) for row in self.rows]
        found = [self.setting(row, "signs", seed=seed) for seed, row in seeds]
        found += [
            self.setting(row, "order", seed=seed, every=LOOK * (seed == 0 and row not in BLIND)) for seed, row in seeds
        ]
        if self.rows is ROWS:
            found += [self.setting(row, "surveillance", seed=seed) for seed in range(self.plan.seeds) for row in SMALL]
        return sorted(found, key=lambda setting: setting.seed)

    def longer(self) -> list[Setting]:
        """Return the setting of the paper's AIM on order with more steps, evaluated during training."""
        return [self.setting(PAPERS_AIM, "order", every=LONGER * LOOK, longer=LONGER)]

    def choices(self) -> list[Setting]:
        """Return the settings of what makes order visible, on some of the training people."""
        return [self.setting(row, "order", development=True) for row in CHOICES]

    def blur(self) -> list[dict[str, float]]:
        """Return how much frozen attention along time blurs, on some videos of people of training."""
        model, preprocessing = backbone(self.data, self.plan.size)
        task = signs(self.cached)
        clips = Clips(task.train, Recipe(frames=FRAMES), preprocessing, task.classes)
        return blur(model, clips.middle(range(0, len(task.train), 8)))


def same_on_all_tasks(top1: dict[str, dict[str, dict[float, float]]]) -> dict[str, float]:
    """Return the learning rate of each row that has the best mean top-1 over the tasks.

    Example:
        >>> same_on_all_tasks({"signs": {"AIM": {0.1: 0.7, 0.2: 0.2}}, "order": {"AIM": {0.1: 0.5, 0.2: 0.6}}})
        {'AIM': 0.1}
    """
    first, *others = top1.values()
    total = {
        row: {lr: rates[lr] + sum(task[row][lr] for task in others) for lr in rates} for row, rates in first.items()
    }
    return {row: max(rates, key=rates.__getitem__) for row, rates in total.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run all trials and write the log, the record and the tables."""
    parser = argparse.ArgumentParser("benchmarks.real", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with signs, clips and weights")
    parser.add_argument("--seeds", type=int, help="number of seeds; those in the log are not run again")
    parser.add_argument("--steps", type=int, help="number of training steps")
    parser.add_argument("--logged", action="store_true", help="run no trials: make the tables of those in the log")
    parser.add_argument(
        "--over-time", action="store_true", help="compare attention and convolutions over time instead"
    )
    given, command = parse(parser, argv, others=("steps",))
    plan = QUICK if given.quick else ON_GPU if torch.cuda.is_available() else Plan()
    plan = replace(plan, seeds=given.seeds or plan.seeds, steps=given.steps or plan.steps)
    bench = Bench(plan, given.data, given.output, given.logged, OVER_TIME if given.over_time else ROWS)
    grid = bench.choose_rates()
    settings = {"trials": bench.table()}
    if not given.over_time:
        settings = {"longer": bench.longer(), "choices": bench.choices(), **settings}
    bench.of(chain(*settings.values()))  # all at once, so that no process waits
    trials = {name: bench.of(wanted) for name, wanted in settings.items()}
    facts = {"plan": asdict(plan), "grid": grid, "rates": bench.rates}
    facts["costs"] = costs(bench.rows, plan, given.data, bench.device)
    facts |= {} if given.over_time else {"blur": bench.blur()}
    bench.cached.unlink()
    name = "real_over_time" if given.over_time else "real" if bench.device == "cuda" else "real_cpu"
    print(record(name, command, 0, given.output, **facts, **trials))
    publish(given.output, name)


if __name__ == "__main__":
    main()
