"""Counted cost of a training step: multiply-adds, saved activations, and the peak memory of live tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
# torch before 2.15 doesn't count its attention kernel for CPUs.
ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **options: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **options: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def gmac(function: Callable[[], object]) -> float:
    """Return the multiply-adds of a call, in units of 10^9 (GMAC).

    Example:
        >>> from torch.nn.functional import scaled_dot_product_attention
        >>> q, k, v = torch.ones(3, 2, 4, 100, 50)  # 8 sequences: q k^T, then its product with v
        >>> gmac(lambda: scaled_dot_product_attention(q, k, v)) == 8 * 2 * 100 * 100 * 50 / 1e9
        True
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        function()
    return counter.get_total_flops() / 2e9


def loss(scores: Tensor) -> Tensor:
    """Cross-entropy of the first class."""
    return nn.functional.cross_entropy(scores, scores.new_zeros(len(scores), dtype=torch.long))


def cost_of_step(model: nn.Module, clips: Tensor, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """Count the cost of forward and backward.

    Args:
        model: Maps clips to scores.
        clips: Clips ``(B, T, C, H, W)``.
        loss: Maps scores to a scalar.

    Returns:
        Multiply-adds of forward and of backward in units of 10^9 (GMAC), and saved activations in MB. Each storage
        counts once; parameters do not count.
    """
    own, saved = {parameter.untyped_storage()._cdata for parameter in model.parameters()}, {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved[tensor.untyped_storage()._cdata] = tensor  # a reference, or the address could be reused
        return tensor

    value: list[Tensor] = []
    with saved_tensors_hooks(note, lambda tensor: tensor):
        forward = gmac(lambda: value.append(loss(model(clips))))
    saved_bytes = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    saved.clear()
    backward = gmac(value[0].backward)
    model.zero_grad()
    return {"forward_gmac": forward, "backward_gmac": backward, "saved_mb": saved_bytes / 1e6}


def peak_of_step(model: nn.Module, clips: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """Return the peak memory of live tensors in forward and backward in MB, excluding tensors that existed before."""
    with Alive() as alive:
        loss(model(clips)).backward()
    model.zero_grad()
    return alive.peak / 1e6


class Alive(TorchDispatchMode):
    """Counter of the memory of live tensors that were created while it is active, and of its peak, in bytes.

    Example:
        >>> with Alive() as alive:
        ...     for _ in range(3):
        ...         x = torch.ones(4)
        >>> alive.peak  # a new tensor is created before the name releases the old one
        32
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        """Run an operation and count the memory of its outputs."""
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known | self.known:
                self._note(tensor.untyped_storage())
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size
