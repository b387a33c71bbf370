"""Does AIM learn what single frames do not show? ``python -m benchmarks.demo`` records ``peft-aim demo``.

It also draws a prediction, as ``peft-aim predict`` does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.demo.tables import table
from benchmarks.reporting.record import RESULTS, record
from benchmarks.reporting.tables import HERE, insert
from peft_aim.video.demo import demo
from peft_aim.video.predict import predict


def main() -> None:
    """Run the demo in a temporary folder; write ``results/demo.json``, ``results/predict.png`` and the table."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, seconds = demo(folder), round(time.perf_counter() - began)
        print(record("demo", "python -m benchmarks.demo", seed=0, rows=rows, seconds=seconds))
        video = min((folder / "motion" / "val").rglob("*.mp4"))
        predict(str(folder / "motion-aim"), video, output=folder)
        shutil.copy(folder / f"{video.name}.png", RESULTS / "predict.png")
    insert("demo", table(rows), HERE)


if __name__ == "__main__":
    main()
