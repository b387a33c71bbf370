"""Does AIM learn what single frames do not show? ``python -m benchmarks.demo`` records ``peft-aim demo``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.reporting.record import record
from peft_aim.video.demo import demo


def main() -> None:
    """Run the demo in a temporary folder and write ``results/demo.json``."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = demo(Path(folder))
    print(record("demo", "python -m benchmarks.demo", seed=0, rows=rows, seconds=round(time.perf_counter() - began)))


if __name__ == "__main__":
    main()
