"""Adapted models as files that run without this package, in onnxruntime or by ``torch.export.load``."""

from peft_aim.video.exporting.blame import NotExportable
from peft_aim.video.exporting.graph import to_onnx, traced

__all__ = ["NotExportable", "to_onnx", "traced"]
