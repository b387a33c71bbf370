"""Export a saved adapter with its backbone as one file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch.export import Dim

from peft_aim.files import written_together
from peft_aim.video.adapters import Loaded, load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import VideoSource, indexed, read_labels
from peft_aim.video.exporting import onnx_file, pt2_file
from peft_aim.video.exporting.blame import NotExportable
from peft_aim.video.exporting.checking import LIMITS, Differs, OnVideos, Run, largest_difference, on_videos
from peft_aim.video.exporting.clip_model import ClipModel
from peft_aim.video.exporting.graph import traced
from peft_aim.video.exporting.metadata import metadata
from peft_aim.video.output import check_writable
from peft_aim.video.problem_type import REGRESSION

FORMATS: dict[str, ModuleType] = {"onnx": onnx_file, "pt2": pt2_file}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: The file.
        bytes: Its size, with that of a file of weights beside it.
        lengths: Numbers of frames per clip that it takes; None if it takes any.
        precision: "fp32", "fp16" or "int8".
        runs_in: What runs it.
        difference: Largest difference from the model in fp32 on noise, relative to the largest number for regression;
            None if the file was not run.
        videos: The comparison on videos, if any were given.
    """

    path: Path
    bytes: int
    lengths: list[int] | None
    precision: str
    runs_in: str
    difference: float | None
    videos: OnVideos | None = None

    def __str__(self) -> str:
        frames = "any number of" if self.lengths is None else " or ".join(map(str, self.lengths))
        lines = [f"{self.path}: {self.bytes / 2**20:.1f} MiB, {self.precision}, clips of {frames} frames"]
        if self.difference is None:
            missing = f"not verified, since {self.runs_in} is not installed: pip install 'peft-aim[export]'"
            lines.append(missing)
        else:
            lines.append(f"verified with {self.runs_in}: largest difference {self.difference:.1e}")
        return "\n".join(lines + ([] if self.videos is None else [str(self.videos)]))


def export(
    adapter: str,
    out: str | Path,
    to: str | None = None,
    precision: str = "fp32",
    videos: str | Path | None = None,
    split: str = "val",
    root: str | Path | None = None,
    source: Source | None = None,
) -> Exported:
    """Export a saved adapter with its backbone as one file, which needs neither this package nor PEFT.

    The file takes uint8 frames ``(B, T, H, W, 3)`` of the backbone's image size, and returns probabilities
    ``(B, classes)``, or numbers for regression. Its metadata, as JSON, has the labels, how to choose, resize and crop
    frames, and the numbers of frames T that it takes: under "peft_aim" in ``metadata_props`` of an ONNX file, as
    "metadata.json" in a .pt2 archive.

    After writing, the file is run on noise. In fp32, a difference from the model above 1e-4 is an error, in fp16 one
    above 2e-2; for regression, relative to the largest number. What int8 costs depends on the data: compare it on
    videos. Without onnxruntime, ONNX files are not run, and take as many frames as in training.

    Args:
        adapter: Folder or Hub id of the adapter. Of a causal one, a model of whole clips is exported, not of a stream.
        out: The file, "my-task.onnx" or "my-task.pt2".
        to: "onnx" or "pt2"; None is what the suffix of ``out`` says.
        precision: "fp32"; "fp16", whose model computes in float16; or "int8", whose weights of linear layers take
            8 bits: by onnxruntime's dynamic quantization, which also quantizes their inputs, or by torchao.
        videos: Labeled videos to compare file and model on: a folder, list or table, see
            :func:`peft_aim.video.data.listing.find_videos`.
        split: Split of ``videos``.
        root: Folder that the paths in a list or table are relative to.
        source: Where to load the backbone from; None uses the source recorded in the adapter.

    Returns:
        The size of the file and how exact it is.

    Raises:
        NotExportable: If the model cannot be exported, because of which operator in which module.
        ModuleNotFoundError: If a package of the extra "export" is missing.
        ValueError: If ``out`` exists, cannot be written to or has another suffix, the adapter, backbone or videos
            cannot be loaded, or the file gives other values than the model; it is then removed.

    Example:
        >>> from peft_aim.video import export
        >>> print(export("my-task", "my-task.onnx", videos="videos"))  # doctest: +SKIP
        my-task.onnx: 27.3 MiB, fp32, clips of any number of frames
        verified with onnxruntime: largest difference 2.4e-07
        124 videos: top-1 93.5% before and 93.5% after the export, 0 predictions differ, largest difference 4.1e-06
    """
    path = Path(out)
    kind = _format(path, to, precision)
    check_writable(path.parent)
    kind.check_installed(precision, runs=videos is not None)
    loaded = load_adapters(adapter, source)
    description = loaded.descriptions[0]
    kind_of_labels, found = description.problem_type, []
    if videos is not None:
        listed = read_labels(VideoSource(videos, root).listing(split), kind_of_labels)
        found = indexed(listed, description.classes, problem_type=kind_of_labels)
    model = ClipModel(loaded.model.get_base_model(), description).eval()
    with written_together(path.parent) as folder:
        written = folder / path.name
        lengths, difference, run = _written(kind, model, loaded, written, precision)
        size = sum(file.stat().st_size for file in folder.iterdir())
        least = (description.recipe or {}).get("min_frames", 1)
        compared = on_videos(run, model, description, found, least) if found else None
    return Exported(path, size, lengths, precision, kind.RUNS_IN, difference, compared)


def _format(path: Path, to: str | None, precision: str) -> ModuleType:
    """Return the format of a file that does not exist yet."""
    names = " or ".join(FORMATS)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}. Choose one of them.")
    if to is not None and to not in FORMATS:
        raise ValueError(f"There is no format {to!r} to export to. Choose {names}.")
    suffix = path.suffix.removeprefix(".")
    if suffix not in FORMATS or (to is not None and suffix != to):
        wanted = f".{to}" if to else " or ".join(f".{name}" for name in FORMATS)
        example = f"{path.stem or 'my-task'}.{to or next(iter(FORMATS))}"
        raise ValueError(f"{path} does not end in {wanted}. Give {path.parent / example}, for example.")
    for existing in (path, path.with_name(f"{path.name}.data")):
        if existing.exists():
            raise ValueError(f"{existing} exists. Give another name, or remove it.")
    return FORMATS[suffix]


def _written(
    kind: ModuleType, model: ClipModel, loaded: Loaded, path: Path, precision: str
) -> tuple[list[int] | None, float | None, Run | None]:
    """Write a file that takes clips of any number of frames or, where that fails, of as many as in training.

    Returns:
        The numbers of frames that it takes, None for any; its largest difference from the model, and what runs it,
        None if it cannot be run.
    """
    frames, size = loaded.descriptions[0].frames, loaded.descriptions[0].preprocessing.size
    prepared, others = kind.prepared(model, precision), [1, frames + 3]
    for dynamic in (True, False) if kind.can_run() else (False,):  # other lengths would have to be tried
        lengths = None if dynamic else [frames]
        shapes = [(b, t, *size, 3) for b, t in ((1, frames), (3, frames), *((2, t) for t in others if dynamic))]
        try:
            count = max(2, frames) if dynamic else frames  # torch.export takes an axis of 1 to be fixed
            example = torch.zeros(2, count, *size, 3, dtype=torch.uint8)
            graph = traced(prepared, (example,), ({0: Dim.DYNAMIC} | ({1: Dim.DYNAMIC} if dynamic else {}),))
            kind.save(prepared, graph, path, metadata(loaded, lengths, precision))
            if not kind.can_run():
                return lengths, None, None
            run = kind.load(path)
            difference = largest_difference(run, model, shapes, relative=model.problem_type == REGRESSION)
            if difference > LIMITS.get(precision, math.inf):
                raise Differs(f"They differ by up to {difference:.1e}, more than {LIMITS[precision]:.0e}")
            return lengths, difference, run
        except (NotExportable, Differs) as error:
            path.unlink(missing_ok=True)
            if dynamic:
                continue
            if isinstance(error, NotExportable):
                raise
            raise ValueError(
                f"{path.name} gives other values than the model: {error}. Export another format or precision."
            ) from error
    raise AssertionError
