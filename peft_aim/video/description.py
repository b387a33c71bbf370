"""What an adapter says of itself: how to make clips of a video file, where its backbone is from, how well it does.

It stands in ``AIMConfig.video``, so PEFT saves, pushes and loads it with all else.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from peft_aim.config import AIMConfig
from peft_aim.video.backbones import Source
from peft_aim.video.data import ForEvaluation, Preprocessing, Video, evaluation_frames, read_views
from peft_aim.video.recipe import Recipe

PACKAGES = ("peft-aim", "torch", "peft", "transformers", "timm", "torchvision", "av")


@dataclass(frozen=True)
class Description:
    """What there is to know of an adapter for videos.

    Attributes:
        frames: Frames T per clip.
        stride: Distance of the frames; None takes one of each of T equal segments.
        views: Clips per video and crops per frame in evaluation.
        preprocessing: How the backbone wants its images.
        source: Where the backbone is from.
        classes: Names of the classes.
        seconds: Typical length of the videos that it was trained on; of longer ones it predicts over time.
        recipe: How it was trained, if that is known.
        results: Results by the name of the split, see :class:`peft_aim.video.metrics.Metrics`.
        versions: Versions of the packages it was made with.
    """

    frames: int
    stride: int | None
    views: tuple[int, int]
    preprocessing: Preprocessing
    source: Source
    classes: list[str]
    seconds: float | None
    recipe: dict[str, Any] | None
    results: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def new(
        cls, recipe: Recipe, preprocessing: Preprocessing, source: Source, classes: list[str], trained: bool = True
    ) -> Description:
        """Describe an adapter that has no results yet.

        Args:
            recipe: How it is to be trained, or, if it was trained elsewhere, how its clips are made.
            preprocessing: How the backbone wants its images.
            source: Where the backbone is from.
            classes: Names of the classes.
            trained: Whether it is trained by this recipe.
        """
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        how = asdict(recipe) if trained else None
        made = (recipe.frames, recipe.stride, recipe.views, preprocessing, source, classes)
        return cls(
            *made, seconds=None, recipe=how, results={}, versions={"python": platform.python_version()} | versions
        )

    def views_of(self, video: Video, part: range | None = None) -> Tensor:
        """Read all views of a video, or of the frames of a part of it, ``(V, T, 3, H, W)``."""
        clips, crops = self.views
        sample = partial(evaluation_frames, frames=self.frames, stride=self.stride, clips=clips)
        return read_views(video, part or range(len(video.seconds)), sample, ForEvaluation(self.preprocessing, crops))

    def write(self, config: AIMConfig) -> None:
        """Note it in an adapter's config."""
        facts = asdict(self)
        for name in ("frames", "classes"):  # which the config has already
            del facts[name]
        config.video = facts

    @classmethod
    def read(cls, config: AIMConfig, name: str) -> Description:
        """Read it from an adapter's config.

        Args:
            config: The config.
            name: The adapter's folder or Hub id, for the message.

        Raises:
            ValueError: If the adapter doesn't say how its clips are made.
        """
        if config.video is None or config.id2label is None:
            raise ValueError(
                f"The adapter {name} doesn't say how clips of a video file are made for it: it was not trained by "
                "peft-aim train. Load it with PeftModel.from_pretrained, and make the clips yourself."
            )
        facts = dict(config.video)
        preprocessing, source = Preprocessing(**facts.pop("preprocessing")), Source(**facts.pop("source"))
        classes = [config.id2label[i] for i in range(len(config.id2label))]
        facts["views"] = tuple(facts["views"])
        return cls(config.num_frames, preprocessing=preprocessing, source=source, classes=classes, **facts)
