"""What does ``peft-aim train`` reach without options? ``python -m benchmarks.real.defaults DATA --runs FOLDER``.

Only the backbone, the videos and a seed are given: *signs* at 224 px, the image size of pretraining, and *order* at
112 px with three seeds. The videos that are played backward are written to files. A training run that is complete is
not repeated. This takes an hour and a half on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.real.rows import MODEL, WEIGHTS
from benchmarks.real.tables import RESULTS
from benchmarks.real.videos import REVERSIBLE
from benchmarks.reporting import tables
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.reporting.tables import headed, line
from peft_aim.__main__ import main as peft_aim
from peft_aim.video.data import open_video
from peft_aim.video.demo.digits import write_video

SIZES = {"signs": None, "order": 112}  # pixels; None is that of pretraining, 224
SEEDS = {"signs": 1, "order": 3}


@cache
def write_order(signs: Path, folder: Path) -> Path:
    """Write the videos of *order*, the words of ``REVERSIBLE`` forward and backward, once; return their folder."""
    for path in sorted(path for word in REVERSIBLE for path in signs.glob(f"*/{word}/*.mp4")):
        with open_video(path) as video:
            frames = video.read(range(len(video.seconds))).permute(0, 2, 3, 1) / 255
        for suffix, shown in (("", frames), (" backwards", frames.flip(0))):
            target = folder / path.parent.parent.name / f"{path.parent.name}{suffix}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_video(target, shown)
    return folder


def run(task: str, seed: int, data: Path, output: Path) -> dict[str, Any]:
    """Train with the default recipe, unless that has been done, and return the facts of its report."""
    folder = output / f"{task}-defaults{f'-{seed}' * (seed > 0)}"
    videos = data / "signs" if task == "signs" else write_order(data / "signs", output / "order-videos")
    model = ["--model", MODEL, "--weights", str(data / WEIGHTS)]
    model += ["--image-size", str(SIZES[task])] if SIZES[task] else []
    arguments = [str(videos), *model, "--seed", str(seed), "--output", str(folder)]
    if not (folder / "report.json").exists() and peft_aim(["train", *arguments]):
        raise RuntimeError(f"peft-aim train failed on {task}; see above.")
    report = json.loads((folder / "report.json").read_text())
    return {
        "task": task,
        "seed": seed,
        "pixels": SIZES[task] or 224,
        **{name: report[name] for name in ("results", "trained_parameters", "speed", "curve", "kept", "recipe")},
        "file_bytes": (folder / "adapter_model.safetensors").stat().st_size,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results in Markdown."""
    head = [
        "`peft-aim train`, no options",
        "seed",
        "image size",
        "top-1 (95% interval over videos)",
        "last epoch",
        "epochs",
    ]
    head += ["trainable parameters", "model", "data loading", "time spent waiting for data"]
    lines = []
    for row in rows:
        (view,) = row["results"]["views"].values()
        least, greatest = view["interval"]
        top1 = f"{view['top1']:.1%} ({least:.1%} to {greatest:.1%})"
        last, speed = row["curve"][-1], row["speed"]
        speeds = (f"{speed[f'{what}_clips_per_second']:.1f} clips/s" for what in ("model", "loader"))
        cells = (row["task"], row["seed"], f"{row['pixels']} px", top1, f"{last['top1']:.1%}", last["epoch"])
        lines.append(line(*cells, f"{row['trained_parameters']:,}", *speeds, f"{speed['waiting']:.0%}"))
    return headed(head, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Train on both tasks, and write ``real_defaults.json`` and its table."""
    parser = argparse.ArgumentParser("benchmarks.real.defaults", description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with signs and weights")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the training runs")
    parser.add_argument("--tasks", nargs="+", choices=SIZES, default=list(SIZES), help="tasks to train on")
    given, command = parse(parser, argv)
    rows = [run(task, seed, given.data, given.runs) for task in given.tasks for seed in range(SEEDS[task])]
    print(record("real_defaults", command, 0, given.output, rows=rows))
    if given.output.resolve() == RESULTS:
        tables.insert("real defaults", table(rows), tables.HERE)


if __name__ == "__main__":
    main()
