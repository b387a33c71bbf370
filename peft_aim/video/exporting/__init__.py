"""Adapted models as files that run without this package, in onnxruntime or by ``torch.export.load``."""

from peft_aim.video.exporting.blame import NotExportable
from peft_aim.video.exporting.exported import Exported, export
from peft_aim.video.exporting.graph import to_onnx, traced
from peft_aim.video.exporting.onnx_file import session_of

__all__ = ["Exported", "NotExportable", "export", "session_of", "to_onnx", "traced"]
