"""Two linear layers with nothing between them, run as one: attention's output projection, and the adapter behind it.

Along time AIM computes ``down(out(m))`` of what the frozen attention has mixed, m, where ``out`` is the attention's
last layer and ``down`` the adapter's first. By the product of their weights the same takes D r D multiplications per
token in place of D D (1 + r), and no token between the two is kept for backward. Exact, up to rounding.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.attention import Kind
from peft_aim.outputs import first_tensor


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

    @property
    def applies(self) -> bool:
        """Whether it may stand for the two: alike in precision, and nobody fetches their weights in between."""
        alike = self.out.weight.dtype == self.down.weight.dtype
        return alike and not any(
            "forward" in vars(layer) for layer in (self.out, self.down)
        )  # accelerate's offloading

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers to tokens."""
        weight, bias = self.down.weight @ self.out.weight, self.down.bias
        if self.out.bias is not None:  # no product of matrix and vector: that rounds as the memory is aligned
            bias = bias + (self.down.weight * self.out.bias).sum(1)
        return F.linear(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])


def ending_in(attention: nn.Module, out: str, down: nn.Linear) -> nn.Module:
    """Return an attention that goes on into another layer; it shares all that it has with the one given.

    Args:
        attention: An attention on tokens of width D.
        out: Name of its output projection.
        down: Linear layer D -> r D.

    Returns:
        A shallow copy whose output projection is a :class:`Product`.
    """
    child, _, rest = out.partition(".")
    part = attention.get_submodule(child)
    twin = copy.copy(attention)
    twin._modules = {**attention._modules, child: ending_in(part, rest, down) if rest else Product(part, down)}
    return twin


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
    if any(isinstance(part, nn.Dropout) and part.p for part in attention.modules()):
        return None  # off in the copy, but not where it trains
    generator = torch.Generator().manual_seed(1)
    down = nn.utils.skip_init(nn.Linear, width, 3, dtype=torch.float64)
    for parameter in down.parameters():
        parameter.normal_(generator=generator)
    x = torch.randn(2, 5, width, generator=generator, dtype=torch.float64)
    expected = down(first_tensor(kind(attention, x)))
    for name, part in reversed(list(attention.named_modules())):
        if type(part) is nn.Linear and name and part.out_features == width:
            try:
                found = first_tensor(kind(ending_in(attention, name, down), x))
            except Exception:  # whatever a foreign module does with tokens of another width
                continue
            if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
                return name
    return None
