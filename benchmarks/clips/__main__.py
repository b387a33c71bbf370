"""Does the full pipeline work on real video files? ``python -m benchmarks.clips CLIPS WEIGHTS``.

CLIPS is a folder of videos and WEIGHTS a file with the weights of SAM 2's Hiera-tiny; the project ships neither. The
commands ``peft-aim train`` and ``peft-aim evaluate`` are run for two backbones: Hiera-tiny, and a small ViT that the
demo pretrains on images of digits, since no weights of a plain ViT are available offline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting.record import record
from benchmarks.reporting.tables import HERE, headed, insert, line
from peft_aim.__main__ import main as peft_aim
from peft_aim.video.demo import pretrain

OPTIONS = {
    "Hiera-tiny (SAM 2), 224 px": ["--image-size", "224", "--epochs", "6", "--batch-size", "4"],
    "small ViT (digits), 32 px": ["--epochs", "30", "--batch-size", "8"],
}


def main() -> None:
    """Train and evaluate, and write ``results/clips.json`` and its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", help="folder of videos")
    parser.add_argument("weights", help="file with the weights of SAM 2's Hiera-tiny")
    given, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        pretrain(Path(folder) / "vit")
        hiera = ["--model", "sam2_hiera_tiny", "--weights", given.weights]
        models = [hiera, ["--model", str(Path(folder) / "vit")]]
        for (name, options), model in zip(OPTIONS.items(), models, strict=True):
            rows.append({"model": name, **run(given.clips, [*model, *options], Path(folder) / f"adapter {len(rows)}")})
            print(record("clips", "python -m benchmarks.clips CLIPS WEIGHTS", seed=0, rows=rows))
    insert("clips", table(rows), HERE)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results in Markdown."""
    head = ["backbone", "views (clips x crops)", "top-1 (95% interval)", "mean-class accuracy", "videos"]
    head += ["trainable parameters", "adapter file", "training speed"]
    lines = []
    for row in rows:
        speed, sizes = row["speed"], (f"{row['trained parameters']:,}", f"{row['file bytes'] / 1e6:.2f} MB")
        speeds = (
            f"{speed['step_seconds']:.2f} s per step, {speed['model_clips_per_second']:.2f} clips/s; data loading "
            f"reaches {speed['loader_clips_per_second']:.1f} clips/s"
        )
        for views, found in row["views"].items():
            least, greatest = found["interval"]
            top1 = f"{found['top1']:.1%} ({least:.1%} to {greatest:.1%})"
            cells = (row["model"], views.replace("x", " x "), top1, f"{found['mean_class']:.1%}", row["videos"])
            lines.append(line(*cells, *sizes, speeds))
    return headed(head, lines)


def run(clips: str, options: list[str], output: Path) -> dict[str, Any]:
    """Train an adapter, evaluate it again with more views, and return the results."""
    assert peft_aim(["train", clips, *options, "--output", str(output)]) == 0
    report = json.loads((output / "report.json").read_text())
    results = output.with_name("evaluation")
    assert (
        peft_aim(["evaluate", str(output), clips, "--views", "1x3", "--min-frames", "2", "--output", str(results)])
        == 0
    )
    views = json.loads((results / "evaluation.json").read_text())["views"]
    return {
        "options": options[-4:],
        "videos": report["results"]["videos"],
        "skipped": [Path(reason.split(" ")[0]).name for reason in report["skipped"]],
        "views": {
            name: {key: found[key] for key in ("top1", "interval", "mean_class", "confusion")}
            for name, found in views.items()
        },
        "speed": report["speed"],
        "trained parameters": report["trained_parameters"],
        "file bytes": (output / "adapter_model.safetensors").stat().st_size,
    }


if __name__ == "__main__":
    main()
