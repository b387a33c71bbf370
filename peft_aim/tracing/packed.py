"""Recognizes layers whose weights are not plain matrices, because they are quantized or in shards.

bitsandbytes packs weights into columns of bytes, torchao and optimum-quanto wrap them in tensor subclasses, HQQ and
GPTQ have layers of their own. All keep the interface of ``nn.Linear``, ``in_features`` and ``out_features``, and an
inspection needs to know no more about them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: ``nn.Linear``, or packed, with its interface and no parts with parameters.

    A layer of another class with plain matrices may do anything with them, such as attention over a graph, so it is
    none.

    Example:
        >>> is_linear(nn.Linear(4, 2)), is_linear(nn.Conv1d(4, 2, 1))
        (True, False)
    """
    if isinstance(module, nn.Linear):
        return True
    widths = (getattr(module, name, None) for name in ("in_features", "out_features"))
    if not all(type(width) is int for width in widths) or any(True for c in module.children() for _ in c.parameters()):
        return False
    own = list(module.parameters(recurse=False))
    return not (any(p.ndim > 1 for p in own) and all(map(is_plain, own)))


def is_plain(weight: Any) -> bool:
    """Whether a weight is a plain tensor of floating-point numbers, of at least 16 bits.

    Example:
        >>> is_plain(torch.ones(1)), is_plain(torch.ones(1).to(torch.float8_e4m3fn)), is_plain(torch.arange(2))
        (True, False, False)
    """
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point() and weight.dtype.itemsize > 1


def is_packed(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight is not a plain matrix.

    Example:
        >>> is_packed(nn.Linear(4, 2))
        False
    """
    if isinstance(module, nn.Linear):
        weight = module._parameters.get("weight")  # a parametrized one is another attribute, computed when it is read
        fits = weight is None or (is_plain(weight) and weight.shape == (module.out_features, module.in_features))
        return not fits
    return is_linear(module)


def plain_layer(packed: nn.Module) -> nn.Linear:
    """Return a linear layer with the widths of a packed one, in float64 on the CPU, with uninitialized weights."""
    bias = getattr(packed, "bias", None) is not None
    widths = packed.in_features, packed.out_features
    return nn.utils.skip_init(nn.Linear, *widths, bias=bias, device="cpu", dtype=torch.float64)


def computing_weight(module: nn.Module) -> Tensor | None:
    """Return a tensor with the device and dtype in which a module computes, None if it has no parameters.

    This is its first plain parameter. The dtype of a packed weight says nothing: bitsandbytes stores four-bit weights
    as any dtype.

    Example:
        >>> computing_weight(nn.Linear(4, 2, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """
    known = (p for part in module.modules() if not is_packed(part) for p in part.parameters(recurse=False))
    for parameter in known:
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            return parameter
    first = next(module.parameters(), None)
    return None if first is None else torch.empty(0, device=first.device)


def unknown_storage(module: nn.Module) -> str | None:
    """Return in words how a module stores weights of which not even the widths are known, None if it has none.

    Masks and indices are no weights: booleans, zeros and ones, and integers of 64 bits, which nobody packs.

    Example:
        >>> module = nn.Module()
        >>> module.register_buffer("mask", torch.ones(6, dtype=torch.uint8))
        >>> unknown_storage(module)
        >>> module.register_buffer("codes", torch.arange(6, dtype=torch.uint8))
        >>> unknown_storage(module)
        "'codes' is a torch.uint8 tensor (6,)"
    """
    if is_linear(module):
        return None
    parameters = dict(module.named_parameters(recurse=False))
    for name, tensor in (*parameters.items(), *module.named_buffers(recurse=False)):
        if tensor.is_floating_point() or tensor.is_complex():
            packed = tensor.dtype.itemsize == 1 and tensor.numel() > 1
        else:
            packed = (name in parameters or tensor.dtype.itemsize == 1) and not _is_mask_or_index(tensor)
        if packed:
            return f"{name!r} is a {tensor.dtype} tensor {tuple(tensor.shape)}"
    return None


def _is_mask_or_index(tensor: Tensor) -> bool:
    if tensor.dtype in (torch.bool, torch.int64) or tensor.numel() < 2:
        return True
    return not tensor.is_meta and bool(((tensor == 0) | (tensor == 1)).all())
