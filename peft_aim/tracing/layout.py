"""Which axes of tokens are the batch of images, the spatial positions and the channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The layout of the tokens that a module is called on.

    Attributes:
        batch: Axis of the batch of images: 0, or 1 for tokens ``(N, B, D)`` with the sequence first.
        channels: Axis of the channels: -1, or 1 for ``(B, D, *N)``.
        groups: Number of patch groups, each with tokens of its own, that an image is split into along the batch axis
            (MobileViT).
    """

    batch: int = 0
    channels: int = -1
    groups: int = 1

    def positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of the other axes, those of the spatial positions.

        Example:
            >>> Layout(channels=1).positions((2, 8, 4, 3)), Layout(batch=1).positions((12, 2, 8))
            ((4, 3), (12,))
        """
        return tuple(n for axis, n in enumerate(shape) if axis not in (self.batch, self.channels % len(shape)))

    def batch_first(self, tokens: Tensor) -> Tensor:
        """Return a view of tokens in this layout, with the batch first and the channels last, ``(B, *N, D)``."""
        return tokens.movedim((self.batch, self.channels), (0, -1))

    def restored(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`batch_first`.

        Example:
            >>> import torch
            >>> tokens, layout = torch.randn(12, 2, 8), Layout(batch=1)
            >>> torch.equal(layout.restored(layout.batch_first(tokens)), tokens)
            True
        """
        return tokens.movedim((0, -1), (self.batch, self.channels))
