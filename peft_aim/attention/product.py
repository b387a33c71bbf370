"""Runs two consecutive linear layers as one: the temporal attention's output projection and the adapter's first layer.

AIM computes ``down(out(m))``, where ``m`` are the values mixed by the frozen attention, ``out`` is its last layer and
``down`` the adapter's first. With the product of their weights, a token costs D r D multiplications instead of
D D (1 + r), and the activations between the two are not saved. The result is the same, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.attention.kinds import Kind
from peft_aim.tracing import first_tensor, is_plain

Weights = tuple[Tensor, Tensor]


def product(out: nn.Linear, down: nn.Linear) -> Weights:
    """Return weight and bias of two consecutive linear layers, ``down(out(x))``.

    Args:
        out: Linear layer D' -> D.
        down: Linear layer D -> r D.

    Example:
        >>> out, down, x = nn.Linear(8, 4), nn.Linear(4, 2), torch.randn(3, 8)
        >>> torch.allclose(F.linear(x, *product(out, down)), down(out(x)), atol=1e-6)
        True
    """
    weight, bias = down.weight @ out.weight, down.bias
    if out.bias is not None:  # a matrix-vector product would round depending on memory alignment
        bias = bias + (down.weight * out.bias).sum(1)
    return weight, bias


def as_one(weights: Callable[[], Weights], x: Tensor) -> Tensor:
    """Apply the :func:`product` of two linear layers to a matrix of tokens, ``(*, D') -> (*, r D)``."""
    return F.linear(x.reshape(-1, x.shape[-1]), *weights()).unflatten(0, x.shape[:-1])


class WithPart:
    """A module with one of its parts replaced, for a single call; the module itself is not changed.

    The forward of the module's class runs with this object as ``self``, which gets everything but the replaced part
    from the module.

    Args:
        module: The module.
        name: Name of the part inside the module, "proj" or "output.dense" for example.
        part: The callable that replaces it.
    """

    def __init__(self, module: nn.Module, name: str, part: Any) -> None:
        child, _, rest = name.partition(".")
        self._module = module
        setattr(self, child, WithPart(getattr(module, child), rest, part) if rest else part)

    def __getattr__(self, name: str) -> Any:
        """Get everything else from the module."""
        return getattr(self.__dict__["_module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward with the replaced part."""
        return type(self._module).forward(self, *args, **kwargs)

    __call__ = forward


def ending_in(
    attention: nn.Module, out: str, down: nn.Linear, kept: Callable[[Callable[[], Weights]], Weights] | None = None
) -> WithPart | None:
    """Return an attention whose output projection is merged with the layer that follows it.

    Args:
        attention: An attention on tokens of width D.
        out: Name of its output projection.
        down: Linear layer D -> r D.
        kept: Returns the product that a function computes, perhaps from an earlier call.

    Returns:
        The attention, for a single call. None if the two layers cannot run as one: they differ in dtype, their weights
        are not plain tensors (quantized, in shards), or a module that would be bypassed has hooks, parametrizations or
        an offloaded forward.
    """
    *around, last = _on_the_way(attention, out)
    if not type(last) is type(down) is nn.Linear or last.weight.dtype != down.weight.dtype:
        return None
    plain = is_plain(last.weight) and is_plain(down.weight)
    if not plain or "forward" in vars(attention) or not all(map(_is_untouched, [*around[1:], last, down])):
        return None
    weights = partial(product, last, down)
    return WithPart(attention, out, partial(as_one, weights if kept is None else partial(kept, weights)))


def _on_the_way(module: nn.Module, name: str) -> list[nn.Module]:
    """Return a module, its part of a name, and the modules between them."""
    found = [module]
    for child in name.split("."):
        found.append(found[-1].get_submodule(child))
    return found


def _is_untouched(module: nn.Module) -> bool:
    return not (module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module))


@torch.no_grad()
def find_output(kind: Kind, attention: nn.Module, width: int) -> str | None:
    """Return the name of the linear layer at the end of an attention, None if there is none.

    Args:
        kind: The kind of temporal attention.
        attention: A copy with random weights in float64.
        width: Token width D.

    Example:
        >>> from timm.layers import Attention
        >>> from peft_aim.attention.kinds import plain
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


def _same(kind: Kind, attention: nn.Module, ending: WithPart, down: nn.Linear, x: Tensor, training: bool) -> bool:
    """Whether nothing acts between the attention's last layer and the next one: no norm, no dropout in training."""
    attention.train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = down(first_tensor(kind(attention, x)))
        torch.manual_seed(0)
        try:
            found = first_tensor(kind(ending, x))
        except Exception:  # a foreign module may not accept tokens of another width
            return False
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
