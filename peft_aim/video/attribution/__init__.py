"""Why an adapter decides as it does: the frames and places that a score rests on, and whether their order matters."""

from peft_aim.video.attribution.explaining import explain
from peft_aim.video.attribution.explanation import Explanation
from peft_aim.video.attribution.gradients import (
    BLUR,
    STEPS,
    attribute,
    blurred,
    in_cells,
    integrated_gradients,
    score_of,
)

__all__ = [
    "BLUR",
    "STEPS",
    "Explanation",
    "attribute",
    "blurred",
    "explain",
    "in_cells",
    "integrated_gradients",
    "score_of",
]
