"""What two processes do if something is wrong on one of them only: run by test_processes."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from peft_aim.video.data.data import Data
from peft_aim.video.data.transforms import Preprocessing
from peft_aim.video.data.views import Views
from peft_aim.video.evaluate import evaluate_model
from peft_aim.video.processes import once, processes
from peft_aim.video.recipe import Recipe
from peft_aim.video.training import run


class Rule(nn.Module):
    """Scores clips by their mean; those of the second process are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.flatten(1).mean(1, keepdim=True) * self.weight + (torch.nan if processes().process_index else 0)


class Description:
    classes = ("dark", "light")
    views = (1, 1)
    problem_type = None
    fps = 12.0

    def views_with(self, clips: int, crops: int) -> Views:
        return Views(2, None, clips, crops, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))


def scores_are_not_finite(folder: Path) -> None:
    evaluate_model(Rule(), Description(), Data.find(folder).val, workers=0, batch_size=1)


def videos_cannot_be_read(folder: Path) -> None:
    """They are on a disk that only the second process has."""
    run.why_unreadable = lambda *_: "a.mp4 is on another disk." if processes().is_main_process else ""
    run.readable(Data.find(folder), Recipe(), check=False)


def the_main_process_fails(folder: Path) -> None:
    once(partial(Path.read_text, folder / "missing"))


if __name__ == "__main__":
    state = processes()
    assert state.num_processes == 2
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
