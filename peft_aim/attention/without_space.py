"""Checks a :class:`Projected` kind against the attention's own forward without its spatial terms.

In a copy with random weights, biases, tables, pooling and the like are set to zero or replaced by the identity. The
kind then has to give the same result, and everything that it leaves out has to depend on positions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention.projected import Projected, is_wide
from peft_aim.tracing import Layout, first_tensor, is_mixer, is_norm, norm_width

# Layers that pool queries or keys over an image, together with norms over all channels.
POOLS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.MaxPool2d)
SPATIAL = (nn.Conv2d, *POOLS, nn.GELU, nn.ReLU)
LARGE = 1024  # tokens; attention over more is tried on a small grid first
SMALL = (8, 8)

Arguments = dict[str, Any]


class OwnForward:
    """An attention's own forward without its spatial terms, which projections have to reproduce.

    Args:
        attention: A copy with random weights in float64; it is changed and restored.
        shape: Shape of the tokens that the block's forward calls it on.
        arguments: Other arguments of that call, by name.
        layout: The layout of these tokens.
    """

    def __init__(self, attention: nn.Module, shape: tuple[int, ...], arguments: Arguments, layout: Layout) -> None:
        self.attention, self.layout = attention, layout
        self._calls = list(_calls(attention, layout.positions(shape), arguments))
        self._width = shape[layout.channels]
        self._pools = any(isinstance(module, POOLS) or is_wide(module) for module in attention.modules())
        self._known: dict[Hashable, list[tuple[Arguments, Tensor, Tensor]]] = {}

    def check_reproduced(self, kind: Projected) -> None:
        """Check that a kind reproduces it.

        Raises:
            ValueError: If it does not, or if the kind leaves out something that does not depend on positions.
        """
        used, cell = frozenset(kind.used_parameters(self.attention)), kind.cell(self.attention)
        for without in (_without_parameters, _without_layers) if self._pools else (_without_parameters,):
            with without(self.attention, kind) as left_out:
                if (without, used) not in self._known:  # most guesses use the same layers, in different ways
                    self._known[without, used] = list(self._results(cell))
                for given, x, own in self._known[without, used]:
                    if same(first_tensor(kind(self.attention, x.flatten(1, -2))), own.flatten(1, -2)):
                        self._check_leaves_out_space_alone(left_out, cell, given, x, own)
                        return
        raise ValueError("they do not reproduce its own forward")

    def __call__(self, given: Arguments, x: Tensor) -> Tensor:
        """Run the attention on tokens ``(B, *N, D)``."""
        with _any_precision(self.attention):
            return self.layout.batch_first(first_tensor(self.attention(self.layout.restored(x), **given)))

    def _results(self, cell: int) -> Iterator[tuple[Arguments, Tensor, Tensor]]:
        """Run it on grids of all sizes that it accepts; on a large one only if it accepts no smaller one.

        All tokens of a cell are equal.
        """
        ran = False
        for positions, given in self._calls:
            if (ran and math.prod(positions) > LARGE) or any(side % cell for side in positions):
                continue
            generator = torch.Generator().manual_seed(1)
            cells = [side // cell for side in positions]
            x = torch.randn(2, *cells, self._width, generator=generator, dtype=torch.float32).double()
            for axis in range(1, x.ndim - 1):
                x = x.repeat_interleave(cell, axis)
            try:
                own = self(given, x)
            except Exception:  # a size that it is not made for, or a layer that it cannot do without
                continue
            if own.shape == x.shape:
                ran = True
                yield given, x[:1], own[:1]  # the kind knows nothing of the other image, so neither does this one

    def _check_leaves_out_space_alone(
        self, left_out: dict[str, Tensor], cell: int, given: Arguments, x: Tensor, own: Tensor
    ) -> None:
        """Check that what a kind leaves out depends on positions, unlike a temperature or a gate."""
        positions = x[..., 0].numel()
        orders = list(_orders(x.shape[1:-1], cell))

        def is_blind(mixed: Tensor, order: Tensor) -> bool:
            moved = self(given, x.flatten(1, -2)[:, order].view_as(x))
            return same(moved.flatten(1, -2), mixed.flatten(1, -2)[:, order])

        for names in _of_one_term(self.attention, left_out):
            for name in names:
                self.attention.get_parameter(name).copy_(left_out[name])
            _forget_caches(self.attention)
            mixed = self(given, x)
            if positions > 2 and not same(mixed, own) and all(is_blind(mixed, order) for order in orders):
                raise ValueError(f"they leave out {names[0]}, which does not depend on positions")
            for name in names:
                self.attention.get_parameter(name).zero_()
        _forget_caches(self.attention)


def _of_one_term(attention: nn.Module, names: Iterable[str]) -> list[list[str]]:
    """Group the names of parameters: weight and bias of a wide convolution belong together, others stand alone."""
    terms: dict[str, list[str]] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        terms.setdefault(owner if is_wide(attention.get_submodule(owner)) else name, []).append(name)
    return [*terms.values()]


def _orders(positions: tuple[int, ...], cell: int) -> Iterator[Tensor]:
    """Iterate over permutations of the positions of a grid that move whole cells; small grids have symmetries."""
    generator = torch.Generator().manual_seed(2)
    index = torch.arange(math.prod(positions)).view(positions)
    tiles = index
    for axis in range(index.ndim):
        tiles = tiles.unfold(axis, cell, cell)
    tiles = tiles.flatten(index.ndim).flatten(0, index.ndim - 1)  # (number of cells, positions of a cell)
    for _ in range(8):
        order = torch.empty(index.numel(), dtype=torch.long)
        order[tiles.flatten()] = tiles[torch.randperm(len(tiles), generator=generator)].flatten()
        yield order


def _calls(
    attention: nn.Module, own: tuple[int, ...], arguments: Arguments
) -> Iterator[tuple[tuple[int, ...], Arguments]]:
    """Iterate over grids of positions, and other arguments, to call an attention on; the largest comes last."""
    given = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}

    def on(grid: tuple[int, ...], positions: tuple[int, ...]) -> tuple[tuple[int, ...], Arguments]:
        return positions, {name: grid if _is_size(value) else value for name, value in given.items()}

    is_large = math.prod(own) > LARGE
    yield on(SMALL, SMALL if len(own) == 2 else (math.prod(SMALL),)) if is_large else (own, given)
    windows = (getattr(attention, name, None) for name in ("window_size", "ws", "patch_size"))
    window = next(filter(None, windows), None)
    if window is not None:
        grid = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
        for positions in [grid] if len(own) == 2 else [(grid[0] * grid[1],), grid[:1]]:
            yield on(grid, positions)
    elif len(own) == 2:  # a window may be one row
        yield (1, own[1]), given
    elif len(own) > 2:  # of a grid of windows, one
        yield (*[1] * (len(own) - 2), *own[-2:]), given
    if is_large:
        yield own, given


def _is_size(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(n, int) for n in value)


@contextmanager
def _without_parameters(attention: nn.Module, kind: Projected) -> Iterator[dict[str, Tensor]]:
    """Set the parameters that a kind leaves out to zero, and restore them at the end; yield their values by name."""
    used = kind.used_parameters(attention)
    left_out = {name: p.clone() for name, p in attention.named_parameters() if id(p) not in used}
    for name in left_out:
        attention.get_parameter(name).zero_()
    _forget_caches(attention)
    try:
        yield left_out
    finally:
        for name, value in left_out.items():
            attention.get_parameter(name).copy_(value)
        _forget_caches(attention)


@contextmanager
def _without_layers(attention: nn.Module, kind: Projected) -> Iterator[dict[str, Tensor]]:
    """Replace pooling layers by the identity as well."""
    used = kind.used_parameters(attention)
    width = next(attention.get_submodule(kind.inner[0]).parameters()).shape[1]
    spatial = {
        name: module
        for name, module in attention.named_modules()
        if name
        and (isinstance(module, SPATIAL) or (is_norm(module) and norm_width(module) == width))
        and not any(id(parameter) in used for parameter in module.parameters())
    }
    for name in spatial:
        attention.set_submodule(name, nn.Identity())
    try:
        with _without_parameters(attention, kind) as left_out:
            yield left_out
    finally:
        for name, module in spatial.items():
            attention.set_submodule(name, module)


@contextmanager
def _any_precision(attention: nn.Module) -> Iterator[None]:
    """Have layers take numbers that an attention makes in float32, coordinates for example."""

    def cast(layer: nn.Module, args: tuple) -> tuple:
        return tuple(arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)

    handles = [layer.register_forward_pre_hook(cast) for layer in attention.modules() if is_mixer(layer)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forget_caches(attention: nn.Module) -> None:
    """Clear a bias that an attention has cached for evaluation (LeViT)."""
    attention.train()
    attention.eval()


def same(a: Tensor, b: Tensor) -> bool:
    """Whether results agree, up to the float32 softmax of many attentions."""
    return torch.allclose(a, b, rtol=0, atol=1e-4)
