"""Classify videos with saved adapters; long videos with a sliding window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from peft_aim.video.adapters import Loaded, load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import BrokenVideo, Video, open_video, to_image, views_of_windows, windows
from peft_aim.video.description import Description
from peft_aim.video.evaluate import score
from peft_aim.video.output import check_writable, printed_if_lost
from peft_aim.video.picture import Row, draw_strip, row_of
from peft_aim.video.problem_type import REGRESSION, SINGLE_LABEL, text_of, top_of


@dataclass(frozen=True)
class Window:
    """Prediction for a window of a long video.

    Attributes:
        begin: Start of the window in seconds.
        end: End of the window in seconds.
        top: The most probable classes and their probabilities, or the predicted numbers.
        problem_type: What they are, see :mod:`peft_aim.video.problem_type`.
    """

    begin: float
    end: float
    top: list[tuple[str, float]]
    problem_type: str | None = None

    def __str__(self) -> str:
        top = self.top[:1] if self.problem_type in (None, SINGLE_LABEL) else self.top
        return f"{self.begin:7.1f} - {self.end:.1f} s  {text_of(top, self.problem_type)}"


@dataclass(frozen=True)
class Prediction:
    """An adapter's prediction for a video.

    Attributes:
        video: The video file.
        adapter: Folder or Hub id of the adapter.
        top: The most probable classes and their probabilities, averaged over the windows; if a video may have several
            classes, at least all above 50%. For regression, what the numbers are called and the numbers.
        windows: Predictions for the windows of a long video; empty if the video is a single window.
        broken: Why the video cannot be read, in which case ``top`` and ``windows`` are empty; "" if it can.
        damaged: What cannot be decoded, if it is more than a fifth of the frames; "" otherwise.
        hdr: Whether the video is in HDR, which is read without tone mapping.
        problem_type: What is predicted, see :mod:`peft_aim.video.problem_type`.
    """

    video: Path
    adapter: str
    top: list[tuple[str, float]]
    windows: list[Window]
    broken: str = ""
    damaged: str = ""
    hdr: bool = False
    problem_type: str | None = None

    def __str__(self) -> str:
        if self.broken:
            return f"skipped: {self.broken}"
        return "\n".join([f"{self.video}: {text_of(self.top, self.problem_type)}", *map(str, self.windows)])


class Predictions(list):
    """Predictions, printed one below the other."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def predict(
    adapters: str | Sequence[str],
    videos: str | Path | Sequence[str | Path],
    top_k: int = 5,
    window: float | None = None,
    output: str | Path | None = None,
    batch_size: int = 8,
    source: Source | None = None,
    fps: float | None = None,
) -> list[Prediction]:
    """Classify videos with one or several adapters, which are swapped on a single copy of the backbone.

    Args:
        adapters: Folder or Hub id of an adapter, or of several adapters for the same backbone.
        videos: One or several videos: files, URLs, or folders of images.
        top_k: Number of classes to return, the most probable first.
        window: Length in seconds of the sliding window over long videos; None uses the typical length of the adapter's
            training videos, 0 classifies every video as a whole.
        output: Folder for an image of each video, with the frames of each adapter's most confident window and its
            prediction; None draws none.
        batch_size: Views per forward pass.
        source: Where to load the backbone from; None uses the source recorded in the first adapter.
        fps: Frames per second of folders of images; None uses that of the adapter's training videos.

    Returns:
        A prediction for each video and adapter. Those of a video that cannot be read have the reason in ``broken``.

    Raises:
        ValueError: If the adapters or the backbone cannot be loaded, top_k or window is out of range, scores are NaN
            or infinite, or ``output`` cannot be written to.
        OSError: If a picture cannot be written. Whatever is raised, the predictions so far are printed.
    """
    adapters = [adapters] if isinstance(adapters, str) else adapters
    videos = [videos] if isinstance(videos, (str, Path)) else videos
    if top_k < 1 or (window is not None and window < 0):
        raise ValueError(
            f"top_k={top_k} or window={window} is out of range. Give at least 1 class, and a window of 0 s or more."
        )
    if output is not None:
        check_writable(Path(output))
    loaded, found = load_adapters(adapters, source), Predictions()
    loaded.to_gpu()
    pictures = picture_names([Path(video) for video in videos])
    with printed_if_lost(found):
        for video, picture in zip(videos, pictures, strict=True):
            read = partial(_of_video, path=video, top_k=top_k, window=window, batch_size=batch_size, fps=fps)
            of_video = [read(loaded, position) for position in range(len(adapters))]
            found += [prediction for prediction, _ in of_video]
            rows = [row for _, row in of_video if row is not None]
            if output is not None and rows:
                Path(output).mkdir(parents=True, exist_ok=True)
                draw_strip(Path(output) / picture, rows)
    return found


def picture_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for the picture of each video: that of the file, with as many folders as tell them apart.

    Example:
        >>> picture_names([Path("a/1.mp4"), Path("b/1.mp4"), Path("b/2.mp4")])
        ['a_1.mp4.png', 'b_1.mp4.png', '2.mp4.png']
    """
    tails = [["_".join(path.parts[-n:]).replace("/", "") for path in paths] for n in (1, 2, 3)]
    counts = [Counter(tail) for tail in tails]
    names = []
    for i, of_path in enumerate(zip(*tails, strict=True), 1):
        alone = (name for name, count in zip(of_path, counts, strict=True) if count[name] == 1)
        names.append(f"{next(alone, f'{i}_{of_path[-1]}')}.png")
    return names


def _of_video(
    loaded: Loaded,
    position: int,
    path: str | Path,
    top_k: int,
    window: float | None,
    batch_size: int,
    fps: float | None,
) -> tuple[Prediction, Row | None]:
    """Return an adapter's prediction for a video, and the row to draw of its most confident window."""
    description, adapter = loaded.activate(position), loaded.names[position]
    try:
        length = description.seconds if window is None else window
        with open_video(path, fps or description.fps) as video:
            found = partial(score_windows, loaded.model, description, length=length, batch_size=batch_size)
            parts, scored, view, surest = video.consistently(found)
            spans = [(video.seconds[part[0]], video.seconds[part[-1]]) for part in parts]
    except BrokenVideo as error:
        return Prediction(Path(path), adapter, [], [], str(error)), None
    mean = torch.stack(scored).mean(0)
    kind, classes = description.problem_type, description.classes
    top = partial(top_of, classes=classes, top_k=top_k, problem_type=kind)
    over_time = [Window(*span, top(one), kind) for span, one in zip(spans, scored, strict=True)]
    about = {"damaged": str(video.damage), "hdr": video.hdr, "problem_type": kind}
    prediction = Prediction(Path(path), adapter, top(mean), over_time if len(spans) > 1 else [], **about)
    return prediction, row_of(to_image(view, description.preprocessing), surest, classes, problem_type=kind)


def score_windows(
    model: nn.Module, description: Description, video: Video, length: float | None, batch_size: int = 8
) -> tuple[list[range], list[Tensor], Tensor, Tensor]:
    """Return the frames of each window, its values, and the middle view and values of the surest window.

    Windows are scored in batches, and only those of a batch are in memory. Of numbers, the first window is taken for
    the surest.

    Args:
        model: The model, with the adapter active.
        description: Description of the adapter.
        video: The video.
        length: Length of the windows in seconds; None or 0 takes the video as a whole.
        batch_size: Views per forward pass.
    """
    views, parts = description.as_evaluated, windows(video.seconds, length) if length else [range(len(video.seconds))]
    scored: list[Tensor] = []
    view, surest = torch.empty(0), torch.full((1,), -torch.inf)  # numbers may be negative
    of_windows = views_of_windows(video, views, parts)
    with tqdm(total=len(parts), desc=str(video.path), unit="window", leave=False, disable=len(parts) == 1) as progress:
        while batch := list(islice(of_windows, max(1, batch_size // views.count))):
            found = score(model, torch.cat(batch), batch_size, description.problem_type)
            found = found.cpu().unflatten(0, (len(batch), -1)).mean(1)
            scored += found
            if found.max() > surest.max() and (description.problem_type != REGRESSION or not len(view)):
                which = 0 if description.problem_type == REGRESSION else int(found.amax(1).argmax())
                view, surest = batch[which][views.count // 2].clone(), found[which]
            progress.update(len(batch))
    return parts, scored, view, surest
