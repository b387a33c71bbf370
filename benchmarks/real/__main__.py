"""Does AIM work on real videos with a pretrained backbone? ``python -m benchmarks.real DATA``, 90 minutes.

DATA is a folder with ``signs`` and ``clips``, videos, and ``weights``, a ViT-Tiny; the project ships none of them. All
rows adapt the same backbone with the same steps and augmentation. The learning rate of a row is the one of three that
scores best on five of the training people, after training on the others; nobody of val takes part in this choice. Each
trial is appended to ``real.jsonl``, from which an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.real.blur import blur
from benchmarks.real.costs import costs
from benchmarks.real.rows import AIM, CHOICES, FRAMES, PAPERS_AIM, ROWS, SMALL, Row, backbone
from benchmarks.real.tables import publish
from benchmarks.real.trial import Plan, Setting, run
from benchmarks.real.videos import Clips, decode, signs
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.training.trials import Facts, Trials
from peft_aim.video.recipe import Recipe

QUICK = Plan(size=32, steps=1, batch=2, seeds=1)
ON_GPU = Plan(size=224, steps=400, batch=16, seeds=5)
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
    """

    def __init__(self, plan: Plan, data: Path, output: Path, logged: bool = False) -> None:
        self.plan, self.data, self.cached, self.logged = plan, data, output / "real_frames.pt", logged
        decode(data, self.cached)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        common = {name: value for name, value in asdict(plan).items() if name != "seeds"}
        self.trials = Trials(output / "real.jsonl", common)
        self.rates: dict[str, float] = {}

    def of(self, settings: Iterable[Setting]) -> list[Facts]:
        """Return the trials with these settings; those that are not in the log are run."""
        settings = list(settings)
        missing = [setting for setting in settings if self.trials.find(asdict(setting)) is None]
        missing = [] if self.logged else missing
        processes = 1 if self.device == "cuda" else os.cpu_count()
        with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            futures = {pool.submit(run, s, self.plan, self.data, self.cached, self.device): s for s in missing}
            for future in as_completed(futures):  # logged at once, in case of an interruption
                self.trials.add(asdict(futures[future]), future.result())
        return [trial for setting in settings if (trial := self.trials.find(asdict(setting)))]

    def choose_rates(self) -> dict[str, dict[float, float]]:
        """Choose the learning rate of each row on some of the training people, and return top-1 by row and rate."""
        rows = [(row.name, rate) for row in ROWS for rate in row.rates]
        settings = [Setting(name, "signs", rate, development=True, longer=HALF) for name, rate in rows]
        found: dict[str, list[Facts]] = {}
        for trial in self.of(settings):
            found.setdefault(trial["settings"]["row"], []).append(trial)
        for name, trials in found.items():
            best = max(trials, key=lambda trial: (trial["top1"], -trial["held_out_loss"]))
            self.rates[name] = best["settings"]["lr"]
        return {name: {trial["settings"]["lr"]: trial["top1"] for trial in trials} for name, trials in found.items()}

    def settings(self) -> list[Setting]:
        """Return the settings of all trials with the rates that were chosen, the first seed first."""
        found = []
        for seed in range(self.plan.seeds):
            for row in sorted(ROWS, key=lambda row: row.once) if seed == 0 else [r for r in ROWS if not r.once]:
                for task in ("signs", "order"):
                    every = LOOK if (row, task, seed) == (AIM, "order", 0) else 0
                    found.append(Setting(row.name, task, self.rate(row), seed, every=every))
        return found + [Setting(row.name, "surveillance", self.rate(row)) for row in SMALL]

    def rate(self, row: Row) -> float:
        """Return the learning rate chosen for a row; rows without a choice of their own take AIM's."""
        return self.rates.get(row.name, self.rates[AIM.name])

    def longer(self) -> list[Facts]:
        """Return a trial of the paper's AIM on order with more steps, evaluated during training."""
        rate, every = self.rate(PAPERS_AIM), LONGER * LOOK
        return self.of([Setting(PAPERS_AIM.name, "order", rate, every=every, longer=LONGER)])

    def blur(self) -> list[dict[str, float]]:
        """Return how much frozen attention along time blurs, on some videos of people of training."""
        model, preprocessing = backbone(self.data, self.plan.size)
        task = signs(self.cached)
        clips = Clips(task.train, Recipe(frames=FRAMES), preprocessing, task.classes)
        return blur(model, clips.middle(range(0, len(task.train), 8)))

    def choices(self) -> list[Facts]:
        """Return trials of what makes order visible, on some of the training people."""
        return self.of(Setting(row.name, "order", self.rate(row), development=True) for row in CHOICES)


def main(argv: Sequence[str] | None = None) -> None:
    """Run all trials and write the log, ``real.json``, a plot and the tables."""
    parser = argparse.ArgumentParser("benchmarks.real", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with signs, clips and weights")
    parser.add_argument("--seeds", type=int, help="number of seeds; those in the log are not run again")
    parser.add_argument("--logged", action="store_true", help="run no trials: make the tables of those in the log")
    given, command = parse(parser, argv)
    plan = QUICK if given.quick else ON_GPU if torch.cuda.is_available() else Plan()
    plan = replace(plan, seeds=given.seeds or plan.seeds)
    bench = Bench(plan, given.data, given.output, given.logged)
    grid = bench.choose_rates()
    choices, trials, longer = bench.choices(), bench.of(bench.settings()), bench.longer()
    facts = {"plan": asdict(plan), "grid": grid, "rates": bench.rates, "costs": costs(plan, given.data)}
    facts["blur"] = bench.blur()
    bench.cached.unlink()
    print(record("real", command, 0, given.output, **facts, trials=trials, choices=choices, longer=longer))
    publish(given.output)


if __name__ == "__main__":
    main()
