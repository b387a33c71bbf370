"""Description of a video adapter: how to make clips from a video file, where to load its backbone from, its results.

It is stored in ``AIMConfig.video``, so PEFT saves, pushes and loads it with the config.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from typing import Any

from peft_aim.config import AIMConfig
from peft_aim.video.backbones import Source
from peft_aim.video.data import Preprocessing, Views
from peft_aim.video.recipe import Recipe

PACKAGES = ("peft-aim", "torch", "peft", "transformers", "timm", "torchvision", "av")


@dataclass(frozen=True)
class Description:
    """Description of a video adapter.

    Attributes:
        frames: Number of frames T per clip.
        stride: Distance between the frames of a clip; None samples one from each of T equal segments.
        views: Views in evaluation: clips per video and crops per frame.
        preprocessing: Preprocessing of the backbone's images.
        source: Where to load the backbone from.
        classes: Class names.
        seconds: Typical length of the training videos in seconds, the default length of the prediction window over
            longer ones.
        recipe: Training recipe, if known.
        results: Results by split, see :class:`peft_aim.video.metrics.Metrics`.
        versions: Versions of Python and of the packages used.
        rate: Typical frame rate of the training videos in frames per second; None if it is not known.
        problem_type: What the scores mean, see :mod:`peft_aim.video.problem_type`; None is one class per video.
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
    rate: float | None = None  # earlier versions did not record it
    problem_type: str | None = None

    @classmethod
    def new(
        cls,
        recipe: Recipe,
        preprocessing: Preprocessing,
        source: Source,
        classes: list[str],
        trained: bool = True,
        problem_type: str | None = None,
    ) -> Description:
        """Describe an adapter that has no results yet.

        Args:
            recipe: Training recipe; for an adapter that was trained elsewhere, only its clip sampling and views count.
            preprocessing: Preprocessing of the backbone's images.
            source: Where to load the backbone from.
            classes: Class names.
            trained: Whether the adapter is trained with this recipe.
            problem_type: What the scores mean; None is one class per video.
        """
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        how = asdict(recipe) if trained else None
        made = (recipe.frames, recipe.stride, recipe.views, preprocessing, source, classes)
        unknown = {"seconds": None, "results": {}, "recipe": how, "problem_type": problem_type}
        return cls(*made, **unknown, versions={"python": platform.python_version()} | versions)

    def views_with(self, clips: int, crops: int) -> Views:
        """Return how to make views with another number of clips and crops."""
        return Views(self.frames, self.stride, clips, crops, self.preprocessing)

    @property
    def as_evaluated(self) -> Views:
        """How to make the views that the adapter is evaluated with."""
        return self.views_with(*self.views)

    @property
    def fps(self) -> float:
        """Frames per second of training videos that were folders of images."""
        return (self.recipe or {}).get("fps", Recipe.fps)

    @property
    def clip_rate(self) -> float | None:
        """Frames per second of the clips of a typical training video; None if it is not known.

        With a stride, one frame in ``stride`` is used. With segments, T frames are spread over the whole video, whose
        last frame lasts as long as the others.
        """
        if self.stride is not None:
            return self.rate and self.rate / self.stride
        length = (self.seconds or 0) + (1 / self.rate if self.rate else 0)
        return self.frames / length if length else None

    def write(self, config: AIMConfig) -> None:
        """Store the description in an adapter's config."""
        facts = asdict(self)
        for name in ("frames", "classes", "problem_type"):  # the config already has them
            del facts[name]
        config.video = facts

    @classmethod
    def read(cls, config: AIMConfig, name: str) -> Description:
        """Read the description from an adapter's config.

        Args:
            config: The config.
            name: The adapter's folder or Hub id, for the error message.

        Raises:
            ValueError: If the config has no description or no class names.
        """
        if config.video is None or config.id2label is None:
            raise ValueError(
                f"The adapter {name} does not describe how to make clips from a video file: it was not trained with "
                "peft-aim train. Load it with PeftModel.from_pretrained, and make the clips yourself."
            )
        facts = dict(config.video)
        preprocessing, source = Preprocessing(**facts.pop("preprocessing")), Source(**facts.pop("source"))
        classes = [config.id2label[i] for i in range(len(config.id2label))]
        facts["views"] = tuple(facts["views"])
        own = {"frames": config.num_frames, "classes": classes, "problem_type": config.problem_type}
        return cls(**own, preprocessing=preprocessing, source=source, **facts)
