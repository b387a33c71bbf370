"""Fingerprints of frozen weights, to check that an adapter is loaded onto the backbone it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 4096  # weights projected at a time
PROJECTIONS = 8
TOLERANCE = 0.004  # rounding to bfloat16 changes the projections by 0.001, a 1% change of the weights by 0.007
COARSE = 0.25  # the tolerance for quantized weights: four bits change the projections by 0.1, other weights by 1.4
QUANTIZED = "quantized"
INDICES = (torch.int64, torch.int32, torch.bool)  # dtypes of buffers that are not weights


@torch.no_grad()
def fingerprint_of(weights: Iterable[tuple[str, Tensor | None]], quantized: bool = False) -> str | None:
    """Compute the fingerprint of named weights.

    Fingerprints have to match after casting to half precision and back, so they consist of numbers that are compared
    with a tolerance: random projections of each tensor divided by its root mean square, plus or minus the logarithm of
    the latter, summed over tensors.

    Args:
        weights: Names and tensors, in any order, of any dtype and on any device; None for one that cannot be read.
        quantized: Whether some of them come from quantized ones. Their fingerprint is compared with more tolerance, so
            that an adapter can move between a backbone and its quantized copies.

    Returns:
        ``"<hash of names and shapes>:<projections>"``, perhaps with ``":quantized"``, or None if there are no weights,
        or if they are not plain tensors in memory: on "meta", in shards, quantized.

    Example:
        >>> fingerprint_of([("w", torch.ones(3))]) == fingerprint_of([("w", torch.ones(3).bfloat16())])
        True
    """
    names: dict[str, str] = {}
    total = torch.zeros(PROJECTIONS, dtype=torch.float64)
    for name, tensor in weights:  # one at a time: together, dequantized ones may not fit in memory
        if tensor is not None and (tensor.dtype in INDICES or not tensor.numel()):
            continue
        if tensor is None or _is_elsewhere(tensor.detach()):
            return None
        names[name] = f"{name}{tuple(tensor.shape)}"
        # Buffers with limits may contain infinity; NaN carries no information.
        total += _project(name, torch.nan_to_num(tensor.detach().float(), 0.0, 0.0, 0.0).flatten())
    if not names:
        return None
    total /= len(names) ** 0.5
    digest = hashlib.sha256("".join(names[name] for name in sorted(names)).encode()).hexdigest()[:16]
    projections = ",".join(f"{value:.4f}" for value in total)
    return f"{digest}:{projections}:{QUANTIZED}" if quantized else f"{digest}:{projections}"


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints belong to the same weights, up to rounding; quantization rounds more.

    Example:
        >>> same_weights("ab:1.000,2.000", "ab:1.001,2.000")
        True
    """
    (names, projections, *kind), (other_names, other_projections, *other_kind) = (v.split(":") for v in (one, other))
    if names != other_names:
        return False
    pairs = zip(projections.split(","), other_projections.split(","), strict=True)
    squares = [(float(a) - float(b)) ** 2 for a, b in pairs]
    return (sum(squares) / len(squares)) ** 0.5 <= (COARSE if kind or other_kind else TOLERANCE)


def _is_elsewhere(weight: Tensor) -> bool:
    return type(weight) is not Tensor or weight.device.type == "meta" or not weight.is_floating_point()


def _project(name: str, weights: Tensor) -> Tensor:
    """Return random projections of about unit variance; the tensor's name is the seed."""
    scale = weights.square().mean().sqrt() + 1e-4  # values that underflow in half precision count as 0
    chunks = torch.nn.functional.pad(weights, (0, -len(weights) % CHUNK)).view(-1, CHUNK)
    within = _signs("within a chunk", CHUNK).to(weights.device)
    among = _signs(name, len(chunks) + 1).double()
    sums = (chunks @ within).double().cpu() * among[:-1]
    projections = sums.sum(0) / (scale.double().cpu() * len(weights) ** 0.5)
    return projections + among[-1] * scale.log2().double().cpu()


def _signs(seed: str, count: int) -> Tensor:
    """Return random signs ``(count, PROJECTIONS)``, the same on all machines."""
    drawn = torch.frombuffer(bytearray(hashlib.shake_256(seed.encode()).digest(count)), dtype=torch.uint8)
    bits = drawn[:, None] >> torch.arange(PROJECTIONS, dtype=torch.uint8) & 1
    return 2.0 * bits - 1
