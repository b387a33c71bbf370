"""A short name for frozen weights, so that an adapter can tell the backbone it was trained on from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLES = 64  # per tensor
SUMS = 4
TOLERANCE = 0.05


@torch.no_grad()
def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Compute the fingerprint of named weights.

    Casting to half precision and back must not change it, so it is made of what rounding keeps: the signs of sampled
    weights, as a hash, and a few weighted sums of the tensors' log magnitudes, to be compared with a tolerance.

    Args:
        weights: Names and tensors, in any order, dtype and device.

    Returns:
        ``"<hash of signs>:<sums>"``, or None if there are no weights, or if they are not here as plain tensors: on
        "meta", in shards, quantized.

    Example:
        >>> fingerprint([("w", torch.ones(3))]) == fingerprint([("w", torch.ones(3).bfloat16())])
        True
    """
    signs = hashlib.sha256()
    sums = torch.zeros(SUMS, dtype=torch.float64)
    found = [(name, tensor.detach()) for name, tensor in weights if tensor.is_floating_point() and tensor.numel()]
    if not found or any(type(tensor) is not Tensor or tensor.device.type == "meta" for _, tensor in found):
        return None
    for name, tensor in sorted(found, key=lambda item: item[0]):
        positions = torch.linspace(0, tensor.numel() - 1, min(SAMPLES, tensor.numel())).long()
        sampled = tensor.reshape(-1)[positions.to(tensor.device)]
        signs.update(f"{name}{tuple(tensor.shape)}".encode())
        signs.update(bytes(torch.signbit(sampled).tolist()))
        magnitude = tensor.float().square().mean().sqrt().double().cpu()
        sums += _signs_of(name) * torch.log2(magnitude + 1e-4)
    return f"{signs.hexdigest()[:16]}:{','.join(f'{value:.3f}' for value in sums)}"


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, up to rounding.

    Example:
        >>> same_weights("ab:1.000,2.000", "ab:1.001,2.000")
        True
    """
    (signs, sums), (other_signs, other_sums) = (value.split(":") for value in (one, other))
    pairs = zip(sums.split(","), other_sums.split(","), strict=False)
    return signs == other_signs and all(abs(float(a) - float(b)) <= TOLERANCE for a, b in pairs)


def _signs_of(name: str) -> Tensor:
    """Return the signs with which a tensor enters the sums, drawn from its name."""
    digest = hashlib.sha256(name.encode()).digest()
    return torch.tensor([1.0 if digest[i] % 2 else -1.0 for i in range(SUMS)], dtype=torch.float64)
