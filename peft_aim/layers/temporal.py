"""The temporal branch, which runs before a block: frozen attention over the frames, or a convolution over them.

Both are objects with one method that computes the branch; their weights are the layer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from peft_aim.attention import ending_in, in_words
from peft_aim.backbone import Anatomy
from peft_aim.clips import Cell, Part
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import (
    bottleneck,
    from_time,
    initialize,
    narrow,
    on_rows,
    to_time,
    widen,
)
from peft_aim.layers.continued import attend_to_past, convolve_past, kept_product
from peft_aim.layers.embedding import TemporalEmbedding
from peft_aim.layers.order import convolve, new_convolution, waves
from peft_aim.recompute import cheap_from
from peft_aim.tracing import first_tensor

Weights = Mapping[str, nn.Module]


@dataclass(frozen=True)
class TemporalAttention:
    r"""The paper's temporal branch, :math:`T(\mathrm{attn}_T(\mathrm{norm}_1(x)))`, with the block's own attention.

    The adapter T may also have what makes the order of frames visible, see :mod:`peft_aim.layers.order`.

    Args:
        anatomy: The parts of the block.
        width: Number of frames that a frame attends to, itself and those before it; None for all frames of the clip.
    """

    anatomy: Anatomy
    width: int | None = None
    normalizes: ClassVar[bool] = True  # the tokens, also by a norm that the block's caller calls

    def __str__(self) -> str:
        if self.width is None:
            return in_words(self.anatomy.attend)
        return f"{in_words(self.anatomy.causal.kind)}, causal"

    def new_weights(self, config: AIMConfig) -> dict[str, nn.Module]:
        """Create the weights, an identity together with the skip connection around the branch."""
        width = self.anatomy.width
        found = dict(zip(("down", "up"), new_bottleneck(width, config), strict=True))
        if config.temporal_adapters == 2:
            found["in_down"], found["in_up"] = new_bottleneck(width, config)
        hidden = found["down"].out_features
        if config.temporal_conv:
            found["conv"] = new_convolution(hidden, config.temporal_kernel, bias=False, causal=config.causal)
        if config.temporal_embedding == "blocks":
            found["inner_embedding"] = TemporalEmbedding(waves(config.num_frames, hidden), config.causal)
        return found

    def __call__(self, block: nn.Module, weights: Weights, x: Tensor, frames: int, past: Part | None = None) -> Tensor:
        """Compute the branch, ``(B*T, *N, D) -> (B*T, *N, D)``; in a stream, for the frames that follow its past."""
        groups = self.anatomy.tokens.groups
        cell = None if past is None else past.cell
        h = self._norm(block, x) if self.anatomy.norm_first else x
        h = to_time(h, frames, groups)  # (B*N, T, D)
        if "in_up" in weights:
            h = h + bottleneck(h, weights["in_down"], weights["in_up"])
        z = self._attend(block, weights["down"], h, x, past)
        if "conv" in weights:
            z = z + _convolve(from_time(narrow(h, weights["down"]), x, groups), weights["conv"], frames, groups, cell)
        if "inner_embedding" in weights:
            z = weights["inner_embedding"](z, frames, groups, past)
        with cheap_from("mlp"):
            return widen(z, weights["up"]).to(x.dtype)

    def _attend(self, block: nn.Module, down: nn.Linear, h: Tensor, like: Tensor, past: Part | None) -> Tensor:
        """Run temporal attention and the bottleneck's first layer, ``(B*N, T, D) -> (B*T, *N, r D)``."""
        anatomy = self.anatomy
        causal = None if self.width is None and past is None else anatomy.causal
        output = anatomy.output if causal is None else causal.output
        attention, ending = block.get_submodule(anatomy.attention), None
        if output and anatomy.norm_first:
            ending = ending_in(attention, output, down, None if past is None else partial(kept_product, past.cell))
        attention = attention if ending is None else ending
        if causal is None:
            mixed = first_tensor(anatomy.attend(attention, h))
        elif past is None:
            mixed = causal(attention, h, self.width)
        else:
            mixed = attend_to_past(causal, attention, h, past)
        mixed = from_time(mixed, like, anatomy.tokens.groups)
        if ending is not None:
            return mixed
        return narrow(mixed if anatomy.norm_first else self._norm(block, mixed), down)

    def _norm(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Apply the attention's norm, if the block has one, to tokens ``(M, *N, D)``."""
        if self.anatomy.norm1 is None:
            return tokens
        norm = block.get_submodule(self.anatomy.norm1)
        if self.anatomy.norm_tokens.channels == -1:
            return norm(tokens)
        return norm(tokens.movedim(-1, 1)).movedim(1, -1)


@dataclass(frozen=True)
class TemporalConvolution:
    r"""ST-Adapter's temporal branch, :math:`W_{up}\,\mathrm{DWConv}_k(W_{down}\,x)` (arXiv 2206.13559, equation 3).

    There is no norm and no nonlinearity, and nothing of the block is used, so any block can have it. The convolution,
    over the frames of one spatial position, starts at zero. ST-Adapter leaves the class token out; here, it passes
    the convolution like every other token.

    Args:
        anatomy: The layout of the block's tokens.
        kernel: Number of frames that the convolution covers.
        causal: Whether these are a frame and those before it, rather than its neighbors on both sides.
    """

    anatomy: Anatomy
    kernel: int
    causal: bool = False
    normalizes: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"convolution over {self.kernel} frames{', causal' if self.causal else ''}"

    def new_weights(self, config: AIMConfig) -> dict[str, nn.Module]:
        """Create the weights: torch's default ones for both linear layers, biases and convolution zero."""
        width, hidden = self.anatomy.width, bottleneck_width(self.anatomy.width, config)
        down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        conv = new_convolution(hidden, self.kernel, causal=self.causal)
        for layer in (down, up, conv):
            nn.init.zeros_(layer.bias)
        if config.init_weights:
            nn.init.zeros_(conv.weight)
        return {"down": down, "up": up, "conv": conv}

    def __call__(self, block: nn.Module, weights: Weights, x: Tensor, frames: int, past: Part | None = None) -> Tensor:
        """Compute the branch, ``(B*T, *N, D) -> (B*T, *N, D)``; in a stream, for the frames that follow its past."""
        cell = None if past is None else past.cell
        z = _convolve(narrow(x, weights["down"]), weights["conv"], frames, self.anatomy.tokens.groups, cell)
        with cheap_from("mlp"):
            return on_rows(weights["up"], z).to(x.dtype)


TemporalBranch = TemporalAttention | TemporalConvolution


def temporal_branch(config: AIMConfig, anatomy: Anatomy) -> TemporalBranch:
    """Return the temporal branch that a config asks for in a block."""
    attends = anatomy.attend is not None and (anatomy.causal is not None or not config.causal)
    if config.temporal == "conv" or not attends:
        return TemporalConvolution(anatomy, config.temporal_kernel, config.causal)
    return TemporalAttention(anatomy, config.num_frames if config.causal else None)


def _convolve(z: Tensor, convolution: nn.Module, frames: int, groups: int, cell: Cell | None) -> Tensor:
    if cell is None:
        return convolve(z, convolution, frames, groups)
    return convolve_past(z, convolution, frames, groups, cell)


def bottleneck_width(width: int, config: AIMConfig) -> int:
    """Return the width r D of the bottlenecks for a token width D."""
    return max(1, int(width * config.bottleneck_ratio))


def new_bottleneck(width: int, config: AIMConfig) -> tuple[nn.Linear, nn.Linear]:
    """Return the layers of a new bottleneck, D -> r D and r D -> D; the second is zero, unless for tests."""
    hidden = bottleneck_width(width, config)
    down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
    if config.init_weights:
        initialize(down)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
    return down, up
