"""Fingerprints of frozen weights, to check that an adapter is loaded onto the backbone it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

CHUNK = 4096  # weights projected at a time
PROJECTIONS = 8
TOLERANCE = 0.004  # rounding to bfloat16 changes the projections by 0.001, a 1% change of the weights by 0.007
INDICES = (torch.int64, torch.int32, torch.bool)  # dtypes of buffers that are not weights


@torch.no_grad()
def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Compute the fingerprint of named weights.

    Fingerprints have to match after casting to half precision and back, so they consist of numbers that are compared
    with a tolerance: random projections of each tensor divided by its root mean square, plus or minus the logarithm of
    the latter, summed over tensors.

    Args:
        weights: Names and tensors, in any order, of any dtype and on any device.

    Returns:
        ``"<hash of names and shapes>:<projections>"``, or None if there are no weights, or if they are not plain
        tensors in memory: on "meta", in shards, quantized.

    Example:
        >>> fingerprint_of([("w", torch.ones(3))]) == fingerprint_of([("w", torch.ones(3).bfloat16())])
        True
    """
    names = hashlib.sha256()
    total = torch.zeros(PROJECTIONS, dtype=torch.float64)
    found = [(name, tensor.detach()) for name, tensor in weights if tensor.dtype not in INDICES and tensor.numel()]
    if not found or any(_is_elsewhere(tensor) for _, tensor in found):
        return None
    for name, tensor in sorted(found, key=lambda item: item[0]):
        names.update(f"{name}{tuple(tensor.shape)}".encode())
        # Buffers with limits may contain infinity; NaN carries no information.
        total += _project(name, torch.nan_to_num(tensor.float(), 0.0, 0.0, 0.0).flatten())
    total /= len(found) ** 0.5
    return f"{names.hexdigest()[:16]}:{','.join(f'{value:.4f}' for value in total)}"


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints belong to the same weights, up to rounding.

    Example:
        >>> same_weights("ab:1.000,2.000", "ab:1.001,2.000")
        True
    """
    (names, projections), (other_names, other_projections) = (value.split(":") for value in (one, other))
    if names != other_names:
        return False
    pairs = zip(projections.split(","), other_projections.split(","), strict=True)
    squares = [(float(a) - float(b)) ** 2 for a, b in pairs]
    return (sum(squares) / len(squares)) ** 0.5 <= TOLERANCE


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
