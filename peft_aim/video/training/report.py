"""The report of a training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from peft_aim.files import write_atomically
from peft_aim.video.data import Remarked, Remarks
from peft_aim.video.evaluate import Evaluation, write
from peft_aim.video.metrics import Measure
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.curve import Point, draw_curve
from peft_aim.video.training.speed import Speed


@dataclass(frozen=True)
class Report(Remarked):
    """Results of a training run.

    Attributes:
        evaluation: Results on the val split; None if there is none, or none of its videos can be read.
        trained_parameters: Number of trainable parameters.
        remarks: What was noticed about the videos, in training or evaluation.
        notes: Caveats about the results, such as classes without videos.
        speed: Training speed; None if there were fewer than two steps.
        classes: Class names.
        recipe: Training recipe.
        curve: Training loss and the metric of the val split by epoch.
        kept: The epoch whose weights were kept.
        measure: The metric of the val split.
    """

    evaluation: Evaluation | None
    trained_parameters: int
    remarks: Remarks
    notes: list[str]
    speed: Speed | None
    classes: list[str]
    recipe: Recipe
    curve: list[Point]
    kept: int
    measure: Measure

    def write(self, folder: Path) -> None:
        """Write ``report.json``, ``curve.png`` and, if evaluated, the files of the evaluation."""
        facts = {
            "results": self.evaluation and self.evaluation.summary(),
            "trained_parameters": self.trained_parameters,
            "skipped": self.skipped,
            "damaged": self.damaged,
            "notes": self.notes,
            "speed": self.speed and self.speed.to_dict(),
            "recipe": asdict(self.recipe),
            "kept": self.kept,
            "curve": self.curve,
        }
        write_atomically(folder / "report.json", json.dumps(facts, indent=2))
        draw_curve(folder / "curve.png", self.curve, self.measure, self.kept)
        if self.evaluation:
            write(self.evaluation, folder)

    def __str__(self) -> str:
        lines = [f"{self.trained_parameters:,} trainable parameters"]
        lines += [f"Kept the weights of epoch {self.kept} of {len(self.curve)}{self._why}"]
        lines += [f"Speed: {self.speed}"] if self.speed else []
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"Files skipped: {len(self.skipped)}", *(f"  {reason}" for reason in self.skipped)]
        if self.damaged:
            lines += [f"Videos damaged: {len(self.damaged)}", *(f"  {what}" for what in self.damaged)]
        lines += [f"\nval: {self.evaluation}"] if self.evaluation else []
        return "\n".join(lines)

    @property
    def _why(self) -> str:
        evaluated = [point for point in self.curve if point[self.measure.key] is not None]
        if self.recipe.keep == "last" or len(evaluated) < 2:
            return ", the last"
        return f": {self.measure.best} of {len(evaluated)} evaluations, so the results below are slightly optimistic"
