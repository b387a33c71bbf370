"""Classify videos with saved adapters; long videos with a sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from peft_aim.video.adapters import Loaded, load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.data import BrokenVideo, open_video, to_image, windows
from peft_aim.video.evaluate import score
from peft_aim.video.picture import Row, draw_strip, row_of


@dataclass(frozen=True)
class Window:
    """Prediction for a window of a long video.

    Attributes:
        begin: Start of the window in seconds.
        end: End of the window in seconds.
        top: The most probable classes and their probabilities.
    """

    begin: float
    end: float
    top: list[tuple[str, float]]

    def __str__(self) -> str:
        guess, probability = self.top[0]
        return f"{self.begin:7.1f} - {self.end:.1f} s  {guess} {probability:.1%}"


@dataclass(frozen=True)
class Prediction:
    """An adapter's prediction for a video.

    Attributes:
        video: The video file.
        adapter: Folder or Hub id of the adapter.
        top: The most probable classes and their probabilities, averaged over the windows.
        windows: Predictions for the windows of a long video; empty if the video is a single window.
        broken: Why the video cannot be read, in which case ``top`` and ``windows`` are empty; "" if it can.
    """

    video: Path
    adapter: str
    top: list[tuple[str, float]]
    windows: list[Window]
    broken: str = ""

    def __str__(self) -> str:
        if self.broken:
            return f"skipped: {self.broken}"
        classes = ", ".join(f"{name} {probability:.1%}" for name, probability in self.top)
        return "\n".join([f"{self.video}: {classes}", *map(str, self.windows)])


def predict(
    adapters: str | Sequence[str],
    videos: str | Path | Sequence[str | Path],
    top_k: int = 5,
    window: float | None = None,
    output: str | Path | None = None,
    batch_size: int = 8,
    source: Source | None = None,
) -> list[Prediction]:
    """Classify videos with one or several adapters, which are swapped on a single copy of the backbone.

    Args:
        adapters: Folder or Hub id of an adapter, or of several adapters for the same backbone.
        videos: One or several video files.
        top_k: Number of classes to return, the most probable first.
        window: Length in seconds of the sliding window over long videos; None uses the typical length of the adapter's
            training videos, 0 classifies every video as a whole.
        output: Folder for an image of each video, with the frames of each adapter's most confident window and its
            prediction; None draws none.
        batch_size: Views per forward pass.
        source: Where to load the backbone from; None uses the source recorded in the first adapter.

    Returns:
        A prediction for each video and adapter. Those of a video that cannot be read have the reason in ``broken``.

    Raises:
        ValueError: If the adapters or the backbone cannot be loaded, or top_k or window is out of range.
    """
    adapters = [adapters] if isinstance(adapters, str) else adapters
    videos = [videos] if isinstance(videos, (str, Path)) else videos
    if top_k < 1 or (window is not None and window < 0):
        raise ValueError(
            f"top_k={top_k} or window={window} is out of range. Give at least 1 class, and a window of 0 s or more."
        )
    loaded, found = load_adapters(adapters, source), []
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    paths = [Path(video) for video in videos]
    for path in paths:
        of_video = [_of_video(loaded, position, path, top_k, window, batch_size) for position in range(len(adapters))]
        found += [prediction for prediction, _ in of_video]
        rows = [row for _, row in of_video if row is not None]
        if output is not None and rows:
            Path(output).mkdir(parents=True, exist_ok=True)
            alone = [other.name for other in paths].count(path.name) == 1
            draw_strip(Path(output) / f"{path.name if alone else '_'.join(path.parts[-3:]).strip('/')}.png", rows)
    return found


def _of_video(
    loaded: Loaded, position: int, path: Path, top_k: int, window: float | None, batch_size: int
) -> tuple[Prediction, Row | None]:
    """Return an adapter's prediction for a video, and the row to draw of its most confident window."""
    description, adapter = loaded.activate(position), loaded.names[position]
    try:
        with open_video(path) as video:
            length = description.seconds if window is None else window
            parts = windows(video.seconds, length) if length else [range(len(video.seconds))]
            scored, best = [], (torch.empty(0), -1.0)
            for part in parts:  # one at a time, since long videos have many
                views = description.views_of(video, part)
                scored.append(score(loaded.model, views, batch_size).mean(0).cpu())
                if scored[-1].max() > best[1]:
                    best = (views[len(views) // 2], float(scored[-1].max()))
            spans = [(video.seconds[part[0]], video.seconds[part[-1]]) for part in parts]
    except BrokenVideo as error:
        return Prediction(path, adapter, [], [], str(error)), None
    mean = torch.stack(scored).mean(0)
    top = partial(_top, classes=description.classes, k=top_k)
    over_time = [Window(*span, top(one)) for span, one in zip(spans, scored, strict=True)]
    prediction = Prediction(path, adapter, top(mean), over_time if len(parts) > 1 else [])
    return prediction, row_of(to_image(best[0], description.preprocessing), mean, description.classes)


def _top(probabilities: Tensor, classes: list[str], k: int) -> list[tuple[str, float]]:
    best = probabilities.topk(min(k, len(classes)))
    return [(classes[i], float(p)) for p, i in zip(best.values, best.indices, strict=True)]
