"""transformers' ``pipeline("video-classification")`` for a saved adapter.

The pipeline cannot load an adapter by its name: it would look for its image model among the video models. So the model
and the video processor that it needs are made here, and handed to it.
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


def video_pipeline(adapter: str, source: Source | None = None, **options: Any) -> VideoClassificationPipeline:
    """Return transformers' own pipeline for a saved adapter; it takes paths and addresses of videos.

    Args:
        adapter: Folder or Hub id of the adapter.
        source: Where to load the backbone from, if not from where the adapter says.
        options: Further options of ``transformers.pipeline``, ``device`` for example.

    Raises:
        ValueError: If adapter or backbone cannot be had.

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
    """The pipeline, for one more class of models than it knows by name."""

    def check_model_type(self, supported_models: Any) -> None:
        """Take ours."""


class ClipProcessor:
    """Reads the views of a video as an adapter wants them.

    Args:
        description: What the adapter says of itself.
    """

    def __init__(self, description: Description) -> None:
        self.description = description

    def __call__(self, video: str, **options: Any) -> BatchFeature:
        """Read a video, ``{"pixel_values": (1, V, T, 3, H, W)}``; how, only the adapter knows."""
        with open_video(video) as opened:
            return BatchFeature({"pixel_values": self.description.views_of(opened)[None]})


class ClipClassifier(PreTrainedModel):
    """An adapted model as a pipeline wants one: with the adapter's own classes in its config.

    Args:
        model: The adapted model, with the adapter active.
        description: What the adapter says of itself.
    """

    main_input_name = "pixel_values"

    def __init__(self, model: PeftModel, description: Description) -> None:
        super().__init__(
            PreTrainedConfig(id2label=dict(enumerate(description.classes)), num_frames=description.frames)
        )
        self.model = model

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """Score videos ``(B, V, T, 3, H, W)``; softmax of the logits gives the mean probabilities of the views."""
        chunks = [score(self.model, views, len(views)) for views in pixel_values]
        return ImageClassifierOutput(logits=torch.stack([views.mean(0) for views in chunks]).log())
