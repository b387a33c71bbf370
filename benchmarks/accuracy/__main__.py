"""Does AIM learn temporal order, and what does each adapter add? ``python -m benchmarks.accuracy``, 1 h on one core.

A small ViT, pretrained on still images of digits, is trained on synthetic clips of ten classes in five pairs. The two
classes of a pair are exact reversals of each other. The rows are the frozen backbone, AIM's adapters added one by one,
and the methods that AIM is compared with. All rows take the same number of steps, except those of the table of longer
training. For each seed, the learning rate is the one of three that scores best on the validation clips. Each trial is
appended to ``accuracy.jsonl``, from which an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.accuracy.fitting import fit, scores_of
from benchmarks.accuracy.ladder import AIM, OVER_TIME, TABLES, Row
from benchmarks.accuracy.reversals import CLASSES, Clips, training_clips, with_reversals
from benchmarks.accuracy.small_vit import pretrained
from benchmarks.accuracy.tables import publish, summary
from benchmarks.methods.rivals import trained_parameters
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.training.metrics import measured
from benchmarks.training.trials import Facts, Trials

TEST_SEED, VALIDATION_SEED = 1_000, 1_001  # training clips are drawn with the seed of the trial: 0, 1, 2 ...


@dataclass(frozen=True)
class Plan:
    """Sizes of the benchmark, the same for all rows.

    Attributes:
        steps: Training steps.
        batch: Clips per step.
        train: Training clips.
        validation: Validation clips; the second half is the first half reversed.
        test: Test clips, made the same way.
        seeds: Number of seeds.
        pretraining: Pretraining steps.
    """

    steps: int = 280
    batch: int = 8
    train: int = 1_000
    validation: int = 240
    test: int = 600
    seeds: int = 5
    pretraining: int = 1_500


QUICK = Plan(steps=1, batch=2, train=40, validation=10, test=20, seeds=1, pretraining=2)


class Bench:
    """The backbone, the clips that all rows are evaluated on, and the trials run so far.

    Args:
        plan: Sizes of the benchmark.
        log: File that stores the trials.
    """

    def __init__(self, plan: Plan, log: Path) -> None:
        self.plan = plan
        self.backbone, self.stills = pretrained(plan.pretraining)
        self.validation = with_reversals("validation", plan.validation, VALIDATION_SEED)
        self.test = with_reversals("test", plan.test, TEST_SEED)
        weights = digest(*self.backbone.state_dict().values())
        self.trials = Trials(log, {**asdict(plan), "backbone": weights, "data": digest(self.test.pixels)})

    def fill(self, wanted: dict[str, tuple[Row, ...]]) -> dict[str, list[Facts]]:
        """Run all trials and return the rows of each table, summarized over the best trial of each seed."""
        tables: dict[str, list[Facts]] = {}
        chosen_rates: dict[str, list[float]] = {}  # by row and seed
        for table, rows in wanted.items():
            tables[table] = []
            for row in rows:
                default = chosen_rates.get(row.name) or chosen_rates.get(AIM.name)
                grids = [row.rates or (default[seed],) for seed in range(self.plan.seeds)]
                chosen = [self.best(row, seed, grid) for seed, grid in enumerate(grids)]
                chosen_rates.setdefault(row.name, [trial["settings"]["lr"] for trial in chosen])
                tables[table].append(summary(row, chosen))
        return tables

    def best(self, row: Row, seed: int, rates: Sequence[float]) -> Facts:
        """Return the trial that scores best on the validation clips."""
        trials = [self.trial(row, seed, rate) for rate in rates]
        return max(trials, key=lambda trial: (trial["validation"]["top1"], -trial["validation"]["loss"]))

    def trial(self, row: Row, seed: int, lr: float) -> Facts:
        """Train a row with a seed and a learning rate, or return its logged trial."""
        settings = {"row": row.name, "fraction": row.fraction, "seed": seed, "lr": lr}
        if row.longer > 1:
            settings["longer"] = row.longer
        return self.trials.of(settings, lambda: self.train(row, seed, lr))

    def train(self, row: Row, seed: int, lr: float) -> Facts:
        """Train a row and return the results."""
        began, plan = time.perf_counter(), self.plan
        clips = _training_clips(plan.train, seed)
        clips = clips.first(max(len(CLASSES), round(row.fraction * plan.train)))
        torch.manual_seed(seed)
        model = row.build(copy.deepcopy(self.backbone))
        loss = fit(model, clips, row.longer * plan.steps, plan.batch, lr)
        scores = scores_of(model, self.test)
        facts = {
            "parameters": trained_parameters(model),
            "clips": len(clips),
            "loss": round(loss, 4),
            "validation": measured(scores_of(model, self.validation), self.validation.labels),
            "test": measured(scores, self.test.labels),
        }
        if row.rounded:
            facts["rounded"] = {str(d): rounded(model, d, scores, self.test) for d in (torch.float16, torch.bfloat16)}
        facts["seconds"] = round(time.perf_counter() - began, 1)
        print(f"{row.name}, {row.fraction:.0%}, seed {seed}, lr {lr}: {facts}", flush=True)
        return facts


_training_clips = lru_cache(maxsize=8)(training_clips)


def rounded(model: nn.Module, dtype: torch.dtype, scores: Tensor, clips: Clips) -> Facts:
    """Evaluate after rounding the trained weights to a dtype, as ``save_dtype`` does.

    Returns:
        The top-1 accuracy, and how many predictions differ from those of ``scores``.
    """
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    rounded_scores = scores_of(model, clips)
    changed = (rounded_scores.argmax(1) != scores.argmax(1)).sum().item()
    return {"top1": measured(rounded_scores, clips.labels)["top1"], "changed": changed}


def digest(*tensors: Tensor) -> str:
    """Return a short hash of the exact values of tensors.

    Example:
        >>> digest(torch.ones(2)) == digest(torch.ones(2)), digest(torch.ones(2)) == digest(torch.zeros(2))
        (True, False)
    """
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()[:12]


def main(argv: Sequence[str] | None = None) -> None:
    """Run all trials and write the log, ``accuracy.json``, a plot and the tables."""
    parser = argparse.ArgumentParser("benchmarks.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--over-time", action="store_true", help="compare attention and convolutions over time instead, 20 minutes"
    )
    given, command = parse(parser, argv)
    plan, log = QUICK if given.quick else Plan(), given.output / "accuracy.jsonl"
    bench = Bench(plan, log)
    tables = bench.fill({"over time": OVER_TIME} if given.over_time else TABLES)
    facts = {"seeds": list(range(plan.seeds)), "plan": asdict(plan), "digits told in stills": bench.stills}
    facts["seconds of all trials"] = round(sum(trial["seconds"] for trial in bench.trials.made))
    name = "accuracy_over_time" if given.over_time else "accuracy"
    print(record(name, command, 0, given.output, **facts, tables=tables))
    publish(given.output, name)


if __name__ == "__main__":
    main()
