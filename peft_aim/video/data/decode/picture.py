"""Decoded frames as upright RGB pictures of one size."""

from __future__ import annotations

import av
import numpy as np
import torch
from torch import Tensor


class Pictures:
    """Turn decoded frames into pictures, all of the size of the first frame: some videos change it midway.

    Args:
        first: The first frame of the video.

    Attributes:
        size: Height and width of the pictures in pixels.
    """

    def __init__(self, first: av.VideoFrame) -> None:
        self._stored = {"width": first.width, "height": first.height}
        self._reformatter = av.video.reformatter.VideoReformatter()  # creating one costs more than decoding a frame
        matrix = next((data for data in first.side_data if data.type.name == "DISPLAYMATRIX"), None)
        self._matrix = None if matrix is None else np.frombuffer(matrix, dtype=np.int32).reshape(3, 3)
        self.size = upright(np.empty((first.height, first.width, 0)), self._matrix).shape[:2]

    def of(self, frame: av.VideoFrame) -> Tensor:
        """Return a frame as uint8 RGB ``(3, H, W)``."""
        image = self._reformatter.reformat(frame, format="rgb24", **self._stored).to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(upright(image, self._matrix))).permute(2, 0, 1)


def upright(image: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Turn and flip a stored image as its display matrix says, like ``ffmpeg -autorotate``.

    The matrix maps a stored position (x, y) to the shown one, (a x + c y, b x + d y); its rows are (a, b) and (c, d).
    FFmpeg ignores a matrix of zeros, which browsers write. Angles between the multiples of 90 degrees are rounded.

    Args:
        image: ``(H, W, C)``.
        matrix: Display matrix, ``(3, 3)``; None shows the image as stored.

    Example:
        >>> upright(np.array([[[1], [2]]]), np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]]))[..., 0].tolist()
        [[1], [2]]
        >>> upright(np.array([[[1], [2]]]), np.array([[-1, 0, 0], [0, 1, 0], [0, 0, 1]]))[..., 0].tolist()
        [[2, 1]]
    """
    if matrix is None or not matrix[:2, :2].any():
        return image
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):  # a quarter turn: rows become columns
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    return image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
