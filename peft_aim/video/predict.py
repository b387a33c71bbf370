"""Predicts the classes of videos with saved adapters, over time if the videos are long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from peft_aim.video.adapters import Loaded, load_adapters
from peft_aim.video.backbones import Source
from peft_aim.video.decode import BrokenVideo, open_video
from peft_aim.video.evaluate import score
from peft_aim.video.picture import draw_strip, row_of
from peft_aim.video.sampling import windows
from peft_aim.video.transforms import to_image


@dataclass(frozen=True)
class Window:
    """A part of a video.

    Attributes:
        begin: Its begin in seconds.
        end: Its end.
        top: The most probable classes, with their probabilities.
    """

    begin: float
    end: float
    top: list[tuple[str, float]]

    def __str__(self) -> str:
        guess, probability = self.top[0]
        return f"{self.begin:7.1f} - {self.end:.1f} s  {guess} {probability:.1%}"


@dataclass(frozen=True)
class Prediction:
    """What an adapter takes a video for.

    Attributes:
        video: The file.
        adapter: Folder or Hub id of the adapter.
        top: The most probable classes, with their probabilities.
        windows: The same over time, if the video is long.
        broken: Why the video cannot be read, "" if it can: there is no prediction then.
    """

    video: Path
    adapter: str
    top: list[tuple[str, float]]
    windows: list[Window]
    broken: str = ""

    def __str__(self) -> str:
        if self.broken:
            return f"{self.video}: skipped: {self.broken}"
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
    """Predict the classes of videos; the backbone is loaded once, and the adapters are swapped on it.

    Args:
        adapters: Folder or Hub id of an adapter, or of several of one backbone.
        videos: The file, or several.
        top_k: Number of classes to tell, the most probable first.
        window: Seconds of a sliding window for long videos; by default the typical length of the videos that the
            adapter was trained on. 0 takes every video as a whole.
        output: Folder for a picture of each video, a strip of frames with the predictions; none if it is None.
        batch_size: Views that the model takes at a time.
        source: Where to load the backbone from, if not from where the adapters say.

    Returns:
        A prediction for each video and adapter. A video that cannot be read has the reason in its place.

    Raises:
        ValueError: If adapters or backbone cannot be had.
    """
    adapters = [adapters] if isinstance(adapters, str) else adapters
    videos = [videos] if isinstance(videos, (str, Path)) else videos
    loaded, found = load_adapters(adapters, source), []
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    for path in map(Path, videos):
        of_video = list(_of_video(loaded, path, top_k, window, batch_size))
        found += [prediction for prediction, _, _ in of_video]
        if output is not None and not of_video[0][0].broken:
            Path(output).mkdir(parents=True, exist_ok=True)
            rows = [
                row_of(images, probabilities, loaded.descriptions[i].classes)
                for i, (_, images, probabilities) in enumerate(of_video)
            ]
            draw_strip(Path(output) / f"{path.name}.png", rows)
    return found


def _of_video(
    loaded: Loaded, path: Path, top_k: int, window: float | None, batch_size: int
) -> Iterator[tuple[Prediction, Tensor, Tensor]]:
    """Yield for each adapter its prediction, the frames that it saw of the first window, and its probabilities."""
    for position, adapter in enumerate(loaded.names):
        description = loaded.activate(position)
        try:
            with open_video(path) as video:
                length = description.seconds if window is None else window
                parts = windows(video.seconds, length) if length else [range(len(video.seconds))]
                read = [description.views_of(video, part) for part in parts]  # (V, T, 3, H, W) each
                spans = [(video.seconds[part[0]], video.seconds[part[-1]]) for part in parts]
        except BrokenVideo as error:
            yield Prediction(path, adapter, [], [], str(error)), torch.empty(0), torch.empty(0)
            continue
        scored = [score(loaded.model, views, batch_size).mean(0).cpu() for views in read]
        mean = torch.stack(scored).mean(0)
        top = partial(_top, classes=description.classes, k=top_k)
        over_time = [Window(*span, top(one)) for span, one in zip(spans, scored, strict=True)]
        prediction = Prediction(path, adapter, top(mean), over_time if len(parts) > 1 else [])
        middle = read[0][len(read[0]) // 2]
        yield prediction, to_image(middle, description.preprocessing), mean


def _top(probabilities: Tensor, classes: list[str], k: int) -> list[tuple[str, float]]:
    best = probabilities.topk(min(k, len(classes)))
    return [(classes[i], float(p)) for p, i in zip(best.values, best.indices, strict=True)]
