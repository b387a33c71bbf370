"""Two linear layers with nothing between them, run as one: attention's output projection, and the adapter behind it.

Along time AIM computes ``down(out(m))`` of what the frozen attention has mixed, m, where ``out`` is the attention's
last layer and ``down`` the adapter's first. By the product of their weights the same takes D r D multiplications per
token in place of D D (1 + r), and no token between the two is kept for backward. Exact, up to rounding.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.attention.kinds import Kind
from peft_aim.tracing import first_tensor


class Product(nn.Module):
    """A linear layer behind another, ``down(out(x))``, by the product of their weights.

    Args:
        out: Linear layer D' -> D.
        down: Linear layer D -> r D.

    Shape:
        ``(*, D') -> (*, r D)``

    Example:
        >>> out, down, x = nn.Linear(8, 4), nn.Linear(4, 2), torch.randn(3, 8)
        >>> torch.allclose(Product(out, down)(x), down(out(x)), atol=1e-6)
        True
    """

    def __init__(self, out: nn.Linear, down: nn.Linear) -> None:
        super().__init__()
        self.out, self.down = out, down

    def stands_for(self, out: nn.Module, down: nn.Module) -> bool:
        """Whether it is of these very layers, in one precision, and nobody has put anything on them."""
        same = out is self.out and down is self.down and out.weight.dtype == down.weight.dtype
        return same and _is_plain(out) and _is_plain(down)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to tokens."""
        weight, bias = self.down.weight @ self.out.weight, self.down.bias
        if self.out.bias is not None:  # no product of matrix and vector: that rounds as the memory is aligned
            bias = bias + (self.down.weight * self.out.bias).sum(1)
        return F.linear(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is just a linear one, without hooks, parametrizations or offloading."""
    changed = layer._forward_pre_hooks or layer._forward_hooks or "forward" in layer.__dict__
    return type(layer) is nn.Linear and not changed


def ending_in(attention: nn.Module, out: str, down: nn.Linear) -> nn.Module:
    """Return an attention that goes on into another layer.

    Args:
        attention: An attention on tokens of width D.
        out: Name of its output projection.
        down: Linear layer D -> r D.

    Returns:
        The attention with a :class:`Product` in the place of its projection. All else is the attention's own, now and
        later: it is in training when that is, and has the parts that that has.
    """
    child, _, rest = out.partition(".")
    part = attention.get_submodule(child)
    view = object.__new__(_view(type(attention), child))
    object.__setattr__(view, "__dict__", attention.__dict__)
    _PART.__set__(view, ending_in(part, rest, down) if rest else Product(part, down))
    _SOURCE.__set__(view, (attention, out, down))
    return view


class _View:
    """A module that is another one, by sharing its attributes, but for one part, which a property of its class has."""

    __slots__ = ("_part", "_source")

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Copies and pickles are made anew of copies of what it is made of."""
        return ending_in, _SOURCE.__get__(self)


_PART, _SOURCE = _View._part, _View._source


@cache
def _view(kind: type[nn.Module], child: str) -> type[nn.Module]:
    """Return the class of modules of a kind whose part of a name is their own; it is found before the module's."""
    return type(kind.__name__, (_View, kind), {child: property(_PART.__get__), "__slots__": ()})


@torch.no_grad()
def find_output(kind: Kind, attention: nn.Module, width: int) -> str | None:
    """Return the name of the linear layer that ends an attention, None if none does or more follows.

    Args:
        kind: How the attention is called along time.
        attention: A copy with random weights in float64.
        width: Token width D.

    Example:
        >>> from timm.layers import Attention
        >>> from peft_aim.attention import plain
        >>> find_output(plain, Attention(8, 2).double(), 8)
        'proj'
    """
    generator = torch.Generator().manual_seed(1)
    down = nn.utils.skip_init(nn.Linear, width, 3, dtype=torch.float64)
    for parameter in down.parameters():
        parameter.normal_(generator=generator)
    x = torch.randn(2, 5, width, generator=generator, dtype=torch.float64)
    for name, part in reversed(list(attention.named_modules())):
        if type(part) is nn.Linear and name and part.out_features == width:
            ending = ending_in(attention, name, down)
            if all(_same(kind, attention, ending, down, x, training) for training in (True, False)):
                return name
    return None


def _same(kind: Kind, attention: nn.Module, ending: nn.Module, down: nn.Linear, x: Tensor, training: bool) -> bool:
    """Whether nothing comes between an attention's last layer and another: no norm, and no dropout when it trains."""
    attention.train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = down(first_tensor(kind(attention, x)))
        torch.manual_seed(0)
        try:
            found = first_tensor(kind(ending, x))
        except Exception:  # whatever a foreign module does with tokens of another width
            return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
