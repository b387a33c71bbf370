"""Is every video read as FFmpeg plays it? ``python -m benchmarks.containers`` reads many forms.

The pictures are numbered, to tell frames apart, or are those of ``peft-aim demo``, for the demo's adapter to classify
(the direction of motion). It is trained first, unless ``--adapter`` names its folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.containers.forms import FORMS, Form
from benchmarks.containers.memory import memory
from benchmarks.containers.numbered import numbered, numbers
from benchmarks.containers.plain import plainly_decoded
from benchmarks.containers.speed import speed
from benchmarks.containers.tables import tables
from benchmarks.reporting.arguments import parse
from benchmarks.reporting.record import record
from benchmarks.reporting.tables import publish
from peft_aim.video.adapters import load_adapters
from peft_aim.video.data import Data, Sample, open_video
from peft_aim.video.demo.digits import write_videos
from peft_aim.video.demo.run import EPOCHS, RECIPE, VIDEOS_PER_CLASS, pretrain
from peft_aim.video.evaluate import evaluate_model
from peft_aim.video.training import train

COUNT, PER_CLASS, ENLARGED = 48, 10, 4
KINDS = {"IndexedVideo": "seeking", "PlainVideo": "plain decoding"}


def main(argv: Sequence[str] | None = None) -> None:
    """Write ``containers.json`` and its tables."""
    parser = argparse.ArgumentParser("benchmarks.containers", description=__doc__.partition("\n")[0])
    parser.add_argument("--adapter", type=Path, help="folder of the demo's adapter for the direction of motion")
    given, command = parse(parser, argv)
    chosen = dict(list(FORMS.items())[:: 12 if given.quick else 1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        write_videos(folder / "drawn", "motion", "val", 2 if given.quick else PER_CLASS)
        loaded = load_adapters([str(given.adapter or trained(folder))])
        drawn = [(_decoded(path), path.parent.name) for path in sorted((folder / "drawn").rglob("*.mp4"))]
        rows = []
        for form_name, form in chosen.items():
            rows.append({**_frames(form_name, form, folder), "top1": _top1(form, drawn, loaded, folder)})
            print(rows[-1], flush=True)
    numbers_of = {"videos": len(drawn), "rows": rows, "speed": speed(2 if given.quick else 15)}
    facts = {**numbers_of, "memory": [] if given.quick else memory()}
    print(record("containers", command, seed=0, folder=given.output, **facts))
    publish("containers", given.output, tables(facts))


def trained(folder: Path) -> Path:
    """Train the demo's adapter for the direction of motion, and return its folder."""
    pretrain(folder / "backbone")
    for split, per_class in VIDEOS_PER_CLASS.items():
        write_videos(folder / "motion", "motion", split, per_class)
    recipe = replace(RECIPE, epochs=EPOCHS["motion"])
    train(Data.find(folder / "motion"), str(folder / "backbone"), folder / "adapter", recipe)
    return folder / "adapter"


def _frames(name: str, form: Form, folder: Path) -> dict[str, Any]:
    """Write numbered pictures, and count those that are read in their place and at their time."""
    path = folder / f"numbered{form.suffix}"
    form.write(numbered(COUNT), path)
    with open_video(path) as video:
        shown, seconds = numbers(video.read(range(len(video.seconds)))), video.seconds
    return {
        "form": name,
        "container": form.container,
        "codec": form.codec,
        "read by": KINDS[type(video).__name__],
        "frames": COUNT,
        "frames right": sum(i == number for i, number in enumerate(shown)) if len(shown) == COUNT else 0,
        "times right": sum(abs(second - i / form.rate) < 2e-3 for i, second in enumerate(seconds)),
    }


def _top1(form: Form, drawn: list[tuple[np.ndarray, str]], loaded: Any, folder: Path) -> float:
    """Write the demo's videos in a form, and return the accuracy of its adapter."""
    description, videos = loaded.descriptions[0], []
    for number, (images, label) in enumerate(drawn):
        path = folder / f"{number}{form.suffix}"
        form.write(images, path)
        videos.append(Sample(path, description.classes.index(label)))
    result = evaluate_model(loaded.model, description, videos, workers=0)
    assert not result.skipped and not result.damaged, result
    return result.best.top1


def _decoded(path: Path) -> np.ndarray:
    """Return the pictures of a video, ``(T, H, W, 3)``, enlarged, since some codecs need more than 32 pixels."""
    images = plainly_decoded(path)[0].permute(0, 2, 3, 1).numpy()
    return images.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)


if __name__ == "__main__":
    main()
