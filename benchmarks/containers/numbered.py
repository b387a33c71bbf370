"""Pictures that show their own number in black and white squares, which every codec preserves."""

from __future__ import annotations

import numpy as np
from torch import Tensor

SIDE = 16  # pixels of a square
BITS = 8


def numbered(count: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Return pictures 0, 1, ..., uint8 ``(count, height, width, 3)``.

    The first row of squares is the number in binary, the second its complement. A white square in the lower left
    corner shows which way up a picture is.
    """
    images = np.full((count, height, width, 3), 64, dtype=np.uint8)
    for number, image in enumerate(images):
        for bit in range(BITS):
            on = 255 * (number >> bit & 1)
            columns = slice(SIDE * bit, SIDE * (bit + 1))
            image[:SIDE, columns], image[SIDE : 2 * SIDE, columns] = on, 255 - on
        image[-SIDE:, :SIDE] = 255
    return images


def numbers(frames: Tensor) -> list[int]:
    """Read the number of each frame, -1 if a frame is not such a picture, or not upright.

    Shape:
        uint8 ``(T, 3, H, W)``

    Example:
        >>> import torch
        >>> numbers(torch.from_numpy(numbered(200)).permute(0, 3, 1, 2)[[7, 199]])
        [7, 199]
    """
    return [_number(frame.float().mean(0)) for frame in frames]


def _number(gray: Tensor) -> int:
    def mean(row: int, column: int) -> float:
        area = gray[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        return float(area[4:-4, 4:-4].mean())

    corner = float(gray[-SIDE + 4 : -4, 4 : SIDE - 4].mean())
    pairs = [(mean(0, bit), mean(1, bit)) for bit in range(BITS)]
    if corner < 160 or any(abs(on - off) < 96 for on, off in pairs):
        return -1
    return sum((on > off) << bit for bit, (on, off) in enumerate(pairs))
