"""What came out of a training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from peft_aim.video.evaluate import Evaluation, write
from peft_aim.video.recipe import Recipe
from peft_aim.video.training.trainer import Speed


@dataclass(frozen=True)
class Report:
    """What came out of a training.

    Attributes:
        evaluation: Results on the videos of val; None if there are none.
        trained_parameters: Number of parameters trained.
        skipped: Reasons why videos could not be read, training and evaluation together.
        notes: What else is worth knowing before trusting the results.
        speed: How fast it went; None if there were fewer than two steps.
        classes: Names of the classes.
        recipe: How it was trained.
    """

    evaluation: Evaluation | None
    trained_parameters: int
    skipped: list[str]
    notes: list[str]
    speed: Speed | None
    classes: list[str]
    recipe: Recipe

    def write(self, folder: Path) -> None:
        """Write it to ``report.json``, with ``evaluation.json`` and ``confusion.png`` beside it."""
        facts = {
            "results": self.evaluation and self.evaluation.summary(),
            "trained_parameters": self.trained_parameters,
            "skipped": self.skipped,
            "notes": self.notes,
            "speed": self.speed and self.speed.to_dict(),
            "recipe": asdict(self.recipe),
        }
        (folder / "report.json").write_text(json.dumps(facts, indent=2))
        if self.evaluation:
            write(self.evaluation, folder)

    def __str__(self) -> str:
        lines = [f"{self.trained_parameters:,} parameters trained"]
        lines += [f"Speed: {self.speed}"] if self.speed else []
        lines += [f"Note: {note}" for note in self.notes]
        lines += [f"{len(self.skipped)} files skipped", *(f"  {reason}" for reason in self.skipped)]
        lines += [f"\nOn val, {self.evaluation}"] if self.evaluation else []
        return "\n".join(lines)
