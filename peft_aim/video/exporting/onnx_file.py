"""ONNX files, which onnxruntime runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from peft_aim.video.exporting.blame import NotExportable, shortened
from peft_aim.video.exporting.clip_model import ClipModel
from peft_aim.video.exporting.graph import OTHER_FORMAT, to_onnx
from peft_aim.video.exporting.metadata import KEY

SUFFIX = ".onnx"
RUNS_IN = "onnxruntime"


def check_installed(precision: str, runs: bool) -> None:
    """Check that the packages that write such files, and run them if that is asked for, are installed.

    Raises:
        ModuleNotFoundError: If one is not.
    """
    import onnxscript  # noqa: F401

    if precision == "int8" or runs:
        import onnxruntime  # noqa: F401


def prepared(model: ClipModel, precision: str) -> ClipModel:
    """Return the model to trace; int8 follows in the file."""
    return model.in_half_precision() if precision == "fp16" else model


def save(model: ClipModel, graph: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Write a graph and its metadata; weights of more than 2 GB are in a second file, named after it, "OUT.onnx.data".

    Args:
        model: The model that was traced.
        graph: Its graph.
        path: The file.
        facts: The metadata; with the precision "int8", the weights of matrix products are quantized, and their inputs
            as they are computed.

    Raises:
        NotExportable: If ONNX lacks an operator.
    """
    program = to_onnx(model, graph)
    program.model.metadata_props[KEY] = json.dumps(facts, ensure_ascii=False)
    program.save(path)
    if facts["precision"] == "int8":
        _quantize(path)


def can_run() -> bool:
    """Whether onnxruntime is installed."""
    return find_spec(RUNS_IN) is not None


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs a file.

    Shape:
        uint8 ``(B, T, H, W, 3) -> (B, classes)``
    """
    session = session_of(path)
    (argument,) = session.get_inputs()
    return lambda frames: torch.from_numpy(session.run(None, {argument.name: frames.numpy()})[0])


def session_of(file: Path | bytes) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU.

    Args:
        file: The file, or its content.

    Raises:
        NotExportable: If onnxruntime does not take it.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no public base
        raise NotExportable(f"onnxruntime rejects the model: {shortened(error)}. {OTHER_FORMAT}.") from error


def _quantize(path: Path) -> None:
    """Quantize the weights of matrix products in a file, and their inputs as they are computed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    is_large = path.with_name(f"{path.name}.data").exists()
    with TemporaryDirectory() as folder, _silent():
        folded = Path(folder, path.name)  # products of weights are weights again, which can be quantized
        quant_pre_process(path, folded, skip_symbolic_shape=True, save_as_external_data=is_large)
        options = {"weight_type": QuantType.QInt8, "per_channel": True, "use_external_data_format": is_large}
        quantize_dynamic(folded, path, **options)


@contextmanager
def _silent() -> Iterator[None]:
    """Log no warnings: onnxruntime's recommend what was done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
