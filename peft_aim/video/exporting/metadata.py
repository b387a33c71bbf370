"""What a file tells about itself: enough to make its input from a video and to read its output."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from peft_aim.video.adapters import Loaded
from peft_aim.video.description import PACKAGES
from peft_aim.video.problem_type import MULTI_LABEL, REGRESSION, SINGLE_LABEL

KEY = "peft_aim"  # of the metadata in a file
OUTPUTS = {
    SINGLE_LABEL: "probabilities of the labels, which sum up to 1",
    MULTI_LABEL: "a probability for each label",
    REGRESSION: "a number for each label",
}
INPUT = (
    "uint8 (B, T, H, W, 3): B clips of T upright RGB frames, resized and cropped to image_size (H, W); T is one of "
    "lengths, any number if they are null"
)
RESIZE = (
    "resize each frame, with antialiasing, to the smallest size of the same aspect ratio that covers image_size "
    "(int(factor * side), at least H and W), then crop: with one crop at the center, from row int((height - H) / 2 + "
    "0.5), columns likewise; with several, from int(j / (crops - 1) * (height - H) + 0.5) for j = 0 ... crops - 1"
)
SEGMENTS = "clip k = 0 ... K - 1 of n frames has frames min(n - 1, int((i + (k + 0.5) / K) * n / T)), i = 0 ... T - 1"
STRIDE = (
    "clip k = 0 ... K - 1 of n frames has frames (s + i * stride) % n, i = 0 ... T - 1, where s = int((k + 0.5) / K * "
    "max(1, n - (T - 1) * stride))"
)
VIEWS = "the output is averaged over clips and crops"


def metadata(loaded: Loaded, lengths: list[int] | None, precision: str) -> dict[str, Any]:
    """Return the facts about an exported adapter, as JSON has them.

    Args:
        loaded: The adapter.
        lengths: Numbers of frames per clip that the file takes; None if it takes any.
        precision: "fp32", "fp16" or "int8".
    """
    description, (name,) = loaded.descriptions[0], loaded.names
    config = loaded.model.peft_config[loaded.model.active_adapter]
    problem_type = description.problem_type or SINGLE_LABEL
    clips, crops = description.views
    sampling = {"frames": description.frames, "stride": description.stride, "clips": clips, "crops": crops}
    rules = {"clips": SEGMENTS if description.stride is None else STRIDE, "resizing": RESIZE, "views": VIEWS}
    return {
        "adapter": name,
        "labels": description.classes,
        "problem_type": problem_type,
        "input": INPUT,
        "output": OUTPUTS[problem_type],
        "lengths": lengths,
        "image_size": list(description.preprocessing.size),
        "interpolation": description.preprocessing.interpolation,
        "sampling": sampling,
        "rules": rules,
        "seconds": description.seconds,
        "backbone": description.source.model,
        "backbone_fingerprint": config.backbone_fingerprint,
        "precision": precision,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
