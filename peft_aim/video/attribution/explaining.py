"""Explain a score of a saved adapter for a video."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from peft_aim.video.adapters import load_adapters
from peft_aim.video.attribution.explanation import Explanation
from peft_aim.video.attribution.gradients import attribute
from peft_aim.video.attribution.picture import draw
from peft_aim.video.backbones import Source
from peft_aim.video.data import Video, open_video, to_image, views_of_windows
from peft_aim.video.description import Description
from peft_aim.video.evaluate import score
from peft_aim.video.metrics import printable
from peft_aim.video.orders import orders
from peft_aim.video.output import check_writable, printed_if_lost
from peft_aim.video.predict import picture_names, score_windows
from peft_aim.video.problem_type import REGRESSION


def explain(
    adapter: str | Path,
    video: str | Path,
    label: str | None = None,
    window: float | None = None,
    output: str | Path | None = None,
    source: Source | None = None,
    fps: float | None = None,
) -> Explanation:
    """Explain which frames and places the score of an adapter for a video rests on, and whether it uses their order.

    A single clip is explained: of the views that the adapter is evaluated with, the middle one; of a long video, that
    of the window in which the probability of the class (or the number) is highest.

    Args:
        adapter: Folder or Hub id of the adapter.
        video: A file, URL, or folder of images.
        label: The class to explain, or the number, of an adapter that predicts numbers; None explains the most
            probable class, or the number if there is only one.
        window: Length in seconds of the sliding window over a long video, see :func:`peft_aim.video.predict.predict`.
        output: Folder for a picture; None draws none.
        source: Where to load the backbone from; None uses the source recorded in the adapter.
        fps: Frames per second of a folder of images; None uses that of the adapter's training videos.

    Raises:
        BrokenVideo: If the video cannot be read.
        ValueError: If the adapter or the backbone cannot be loaded, it does not predict the label, window is out of
            range, scores are NaN or infinite, or ``output`` cannot be written to.
        OSError: If the picture cannot be written; the explanation is then printed.

    Example:
        >>> found = explain("my-task", "video.mp4")  # doctest: +SKIP
        >>> found.label, found.attributions.shape, found.orders["reversed"]  # doctest: +SKIP
        ('push', torch.Size([8, 14, 14]), 0.04)
    """
    if window is not None and window < 0:
        raise ValueError(f"window={window} is out of range. Give a window of 0 s or more.")
    if output is not None:
        check_writable(Path(output))
    adapter = str(adapter)
    loaded = load_adapters(adapter, source)
    model, description = loaded.model, loaded.descriptions[0]
    wanted = index_of(label, description, adapter)
    device = loaded.to_gpu()
    with open_video(video, fps or description.fps) as opened:
        length = description.seconds if window is None else window
        choose = partial(chosen, model, description, wanted=wanted, length=length)
        index, clip, seconds = opened.consistently(choose)
    values = values_in_orders(model, clip, index, description.problem_type)
    found = Explanation(
        video=video,
        adapter=adapter,
        label=description.classes[index],
        is_number=description.problem_type == REGRESSION,
        seconds=seconds,
        attributions=attribute(model, clip.to(device), index, description.problem_type).cpu(),
        orders=values,
        damaged=str(opened.damage),
    )
    if output is not None:
        with printed_if_lost(found, output):
            Path(output).mkdir(parents=True, exist_ok=True)
            images = to_image(clip, description.preprocessing)
            draw(Path(output) / picture_name(Path(video), label), images, found, index)
    return found


def picture_name(video: Path, label: str | None) -> str:
    """Return the name of the picture, with the class if that was asked for.

    Example:
        >>> picture_name(Path("a/1.mp4"), None), picture_name(Path("a/1.mp4"), "left/right")
        ('1.mp4.png', '1.mp4 left_right.png')
    """
    (name,) = picture_names([video])
    if label is None:
        return name
    safe = re.sub(r"[^-.,() \w]", "_", label)
    return f"{name.removesuffix('.png')} {safe}.png"


def index_of(label: str | None, description: Description, adapter: str) -> int | None:
    """Return the index of a class or number; None if none is given, and the most probable class is meant.

    Raises:
        ValueError: If the adapter does not predict it, or predicts several numbers and none is given.
    """
    names = description.classes
    shown = ", ".join(map(printable, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    if label is not None and label not in names:
        raise ValueError(f"The adapter {adapter} does not predict {label!r}. Give one of {shown}.")
    if label is None and description.problem_type == REGRESSION and len(names) > 1:
        raise ValueError(f"The adapter {adapter} predicts {len(names)} numbers. Give one with --label: {shown}.")
    return None if label is None else names.index(label)


def chosen(
    model: nn.Module, description: Description, video: Video, wanted: int | None, length: float | None
) -> tuple[int, Tensor, list[float]]:
    """Return the index of the class or number, the clip to explain it in, and the time of each frame in seconds.

    Shape:
        The clip is ``(T, 3, H, W)``.
    """
    parts, scored, *_ = score_windows(model, description, video, length)
    values, views = torch.stack(scored), description.as_evaluated
    index = int(values.mean(0).argmax()) if wanted is None else wanted
    part, middle = parts[int(values[:, index].argmax())], views.count // 2
    (of_part,) = views_of_windows(video, views, [part])
    first = middle // views.crops * views.frames
    return index, of_part[middle], [video.seconds[i] for i in views.chosen(part)[first : first + views.frames]]


def values_in_orders(model: nn.Module, clip: Tensor, index: int, kind: str | None) -> dict[str, float]:
    """Return the probability or number with the frames of a clip in each of the orders, averaged over shuffles."""
    return {
        order: float(score(model, clip[torch.tensor(indices)], 1, kind)[:, index].mean())
        for order, indices in orders(len(clip)).items()
    }
