"""Runs an adapted model in onnxruntime: the second party of a law."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_aim.tracing import Images, run, tensors_in
from peft_aim.video.exporting import session_of, to_onnx, traced


class Scored(nn.Module):
    """A model that takes its arguments as one dictionary, and returns the first tensor of numbers in its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Tensor:
        """Return scores, features or tokens."""
        return next(t for t in tensors_in(run(self.model, images)) if t.is_floating_point() and t.ndim)


def scored(model: nn.Module, example: Images, images: Images) -> Tensor:
    """Export a model and run it in onnxruntime.

    Args:
        model: The model.
        example: Clips to export it with.
        images: Other clips, of any number, to run it on.

    Raises:
        NotExportable: If it cannot be exported, or onnxruntime does not take it.
    """
    scored = Scored(model).eval()
    graph = traced(scored, (example,), {"images": {name: {0: torch.export.Dim.DYNAMIC} for name in example}})
    session = session_of(to_onnx(scored, graph).model_proto.SerializeToString())
    inputs = zip(session.get_inputs(), images.values(), strict=True)
    (output,) = session.run(None, {argument.name: tensor.numpy() for argument, tensor in inputs})
    return torch.from_numpy(output)
