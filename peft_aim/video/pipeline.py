"""transformers' ``pipeline("video-classification")`` for a saved adapter.

``pipeline`` cannot load an adapter by its name: it would look up the backbone among the video models. This module
builds the model and the video processor, and passes them to it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel, VideoClassificationPipeline, pipeline
from transformers.modeling_outputs import ImageClassifierOutput

from peft_aim.video.adapters import load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import open_video
from peft_aim.video.description import Description
from peft_aim.video.evaluate import score
from peft_aim.video.problem_type import scores_for


def video_pipeline(adapter: str, source: Source | None = None, **options: Any) -> VideoClassificationPipeline:
    """Return transformers' own pipeline for a saved adapter; it takes paths and URLs of videos.

    Args:
        adapter: Folder or Hub id of the adapter.
        source: Where to load the backbone from; None uses the source recorded in the adapter.
        options: Other arguments of ``transformers.pipeline``, ``device`` for example.

    Raises:
        ValueError: If the adapter or the backbone cannot be loaded.

    Example:
        >>> classify = video_pipeline("my-task")  # doctest: +SKIP
        >>> classify("video.mp4", top_k=2)  # doctest: +SKIP
        [{'score': 0.92, 'label': 'push'}, {'score': 0.08, 'label': 'pull'}]
    """
    loaded = load_adapters([adapter], source)
    model, processor = ClipClassifier(loaded.model, loaded.descriptions[0]), ClipProcessor(loaded.descriptions[0])
    parts = {"model": model, "video_processor": processor, "pipeline_class": ClipPipeline}
    return pipeline("video-classification", **parts, **options)


class ClipPipeline(VideoClassificationPipeline):
    """transformers' pipeline, extended to accept :class:`ClipClassifier`."""

    def check_model_type(self, supported_models: Any) -> None:
        """Accept a model that is not in transformers' list."""


class ClipProcessor:
    """Video processor that returns the views an adapter is evaluated with.

    Args:
        description: Description of the adapter.
    """

    def __init__(self, description: Description) -> None:
        self.description = description

    def __call__(self, video: str, **options: Any) -> BatchFeature:
        """Read the views of a video.

        Args:
            video: Path or URL of the video.
            options: Ignored, since the description decides on sampling and preprocessing.

        Returns:
            ``{"pixel_values": (1, V, T, 3, H, W)}``
        """
        with open_video(video) as opened:
            return BatchFeature({"pixel_values": opened.consistently(self.description.as_evaluated.of)[None]})


class ClipClassifier(PreTrainedModel):
    """An adapted model with the interface of the pipeline: its config has the classes of the adapter.

    Args:
        model: The adapted model, with the adapter active.
        description: Description of the adapter.
    """

    main_input_name = "pixel_values"

    def __init__(self, model: PeftModel, description: Description) -> None:
        super().__init__(
            PreTrainedConfig(
                id2label=dict(enumerate(description.classes)),
                num_frames=description.frames,
                problem_type=description.problem_type,  # by which the pipeline makes probabilities of the logits
            )
        )
        self.model = model

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Return the logits of videos, which mean the average of the views' probabilities or numbers.

        Shape:
            ``(B, V, T, 3, H, W)`` -> ``(B, classes)``
        """
        kind = self.config.problem_type
        chunks = [score(self.model, views, len(views), kind) for views in pixel_values]
        return ImageClassifierOutput(logits=scores_for(torch.stack([views.mean(0) for views in chunks]), kind))
