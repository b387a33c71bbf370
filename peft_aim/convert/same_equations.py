"""Compares what a backbone computes with the official code's image model, since weights do not show activations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aim.backbone import Anatomy, Inspection
from peft_aim.convert.observe import Observed, relative_difference
from peft_aim.convert.official import Layout, Official, Weights
from peft_aim.convert.same_weights import Pairs
from peft_aim.tracing import first_tensor, running

ACTIVATIONS = {
    "QuickGELU": lambda x: x * torch.sigmoid(1.702 * x),
    "GELU": F.gelu,
    "GELU by tanh": partial(F.gelu, approximate="tanh"),
    "ReLU": F.relu,
}
TOLERANCE = 0.02  # for half precision and the epsilons of norms
HEAD_WIDTH = 64  # of all official models; not stored in checkpoints
SMALLEST = 768  # width of the smallest official model; for smaller ones, the backbone's number of heads is accepted


def mlp_layers(pairs: Pairs, file: Official) -> list[tuple[str, str]]:
    """Return the names in the backbone of the two layers of each block's MLP."""
    layers = []
    for i in range(len(file.blocks)):
        weights = [pairs[file.name_of(i, f"{name}.weight")] for name in file.layout.mlp]
        layers.append(tuple(weight.rpartition(".")[0] for weight in weights))
    return layers


def check_same_equations(
    file: Official, backbone: nn.Module, found: Inspection, observed: Observed, layers: list[tuple[str, str]]
) -> None:
    """Check that each part of a backbone, and therefore the whole, computes the same as the official code.

    Args:
        file: The checkpoint.
        backbone: The backbone, with the same weights.
        found: Its structure.
        observed: A run in which the blocks, the layers of their MLPs and the head were recorded.
        layers: Names of these layers.

    Raises:
        ValueError: If the backbone has another activation, number of heads or readout, or computes something else.
    """
    names = list(found.blocks)
    embedded = _embed(file, observed.image.cpu().float())
    _check("in the patch embedding", observed.given[names[0]], embedded, file, backbone)
    for i, name in enumerate(names):
        _check_activation(file, backbone, *layers[i], observed)
        heads = _heads(file, i, backbone, name, found.blocks[name])
        given = observed.given[name].cpu().float()
        update = _block(file.blocks[i], file.layout, given, heads) - given
        rounding = 4 * torch.finfo(observed.given[name].dtype).eps * float(given.norm() / update.norm())
        _check(f"in {name}", observed.returned[name].cpu().float() - given, update, file, backbone, rounding)
        if i:
            _check(f"before {name}", observed.given[name], observed.returned[names[i - 1]], file, backbone)
    check_readout(backbone, found, observed)


def check_readout(backbone: nn.Module, found: Inspection, observed: Observed) -> None:
    """Check that the head is called on the class token after the final norm.

    Raises:
        ValueError: If it is called on anything else.
    """
    expected = class_token(backbone, found, observed)
    if not relative_difference(observed.given[found.head], expected) <= TOLERANCE:
        raise ValueError(
            f"The head {found.head!r} of this {type(backbone).__name__} is not called on the class token after the "
            f"final norm {found.final_norms[0]!r}, unlike that of the official model; it may average patches. Give "
            "the variant that uses the class token (transformers: CLIPVisionModelWithProjection, where the adapter's "
            "head replaces visual_projection and the scores are image_embeds; timm: global_pool='token')."
        )


@torch.no_grad()
def class_token(model: nn.Module, found: Inspection, observed: Observed) -> Tensor:
    """Compute the class token after the final norm, (1, D), from the output of the last block.

    Raises:
        ValueError: If there are several norms after the last block, or none.
    """
    if len(found.final_norms) != 1:
        raise ValueError(
            f"This {type(model).__name__} has {len(found.final_norms)} norms after its last block "
            f"({', '.join(found.final_norms) or 'none'}) that its output depends on, but the official model has one. "
            "Give the variant that normalizes all tokens and uses the class token (timm: global_pool='token'; "
            "transformers: CLIPVisionModelWithProjection)."
        )
    norm = model.get_submodule(found.final_norms[0])
    return norm(observed.returned[list(found.blocks)[-1]][:, :1])[:, 0]


def _check(
    where: str, got: Tensor, expected: Tensor, file: Official, backbone: nn.Module, rounding: float = 0.0
) -> None:
    difference = relative_difference(got.cpu().float(), expected.cpu().float())
    if not difference <= TOLERANCE + rounding:
        raise ValueError(
            f"This {type(backbone).__name__} has the weights of {file.source}, but {where} it computes something "
            f"other than the official {file.layout.name} model ({difference:.1%} difference on a random image). Give "
            "the image model that the checkpoint was trained on."
        )


def _check_activation(file: Official, backbone: nn.Module, first: str, second: str, observed: Observed) -> None:
    if first not in observed.returned or second not in observed.given:
        raise ValueError(
            f"{first} and {second} of this {type(backbone).__name__} have the weights of an MLP, but are not called, "
            "so its activation cannot be observed. Build the model without fused MLPs."
        )
    before, after = (tensor.cpu().float() for tensor in (observed.returned[first], observed.given[second]))
    differences = {name: relative_difference(function(before), after) for name, function in ACTIVATIONS.items()}
    expected = file.layout.activation
    if not _fits(differences, expected):
        best = min(differences, key=differences.__getitem__)
        instead = f"is {best}" if _fits(differences, best) else f"is none of {', '.join(ACTIVATIONS)}"
        raise ValueError(
            f"The activation between {first} and {second} of this {type(backbone).__name__} {instead}, but "
            f"{file.source}, in the layout of {file.layout.name}, was trained with {expected} "
            f"({differences[expected]:.1%} difference). {_REMEDIES[expected]}"
        )


_REMEDIES = {
    "QuickGELU": "Use the variant with quickgelu in its name (timm: vit_base_patch16_clip_quickgelu_224.openai; "
    "open_clip: ViT-B-16-quickgelu), or hidden_act='quick_gelu' (transformers).",
    "GELU": "Use the variant with plain GELU, hidden_act='gelu' in transformers.",
}


def _fits(differences: Mapping[object, float], expected: object) -> bool:
    """Whether a candidate fits: its difference is within the tolerance, and no other is clearly smaller."""
    return differences[expected] <= min(TOLERANCE, 1.1 * min(differences.values()) + 1e-4)


@torch.no_grad()
def _heads(file: Official, index: int, backbone: nn.Module, name: str, anatomy: Anatomy) -> int:
    """Return the number of heads of a block's attention, after checking that the official model has the same."""
    weights, width = file.blocks[index], file.width
    attention = backbone.get_submodule(f"{name}.{anatomy.attention}")
    x = torch.randn(2, 8, width, generator=torch.Generator().manual_seed(0))
    x = _norm(x, weights, file.layout.norms[0], file.layout.eps)
    with running(backbone, training=False):
        got = first_tensor(anatomy.attend(attention, x.to(next(attention.parameters())))).cpu().float()
    counts = [heads for heads in range(1, width + 1) if width % heads == 0]
    differences = {n: relative_difference(got, _attention(weights, file.layout, x, n)) for n in counts}
    best = min(differences, key=differences.__getitem__)
    expected = best if width < SMALLEST or width % HEAD_WIDTH else width // HEAD_WIDTH
    if not _fits(differences, expected):
        observed = f"has {best} heads" if _fits(differences, best) else "is not plain softmax attention"
        raise ValueError(
            f"The attention of {name} of this {type(backbone).__name__} {observed}, but {file.source} was trained "
            f"with {expected} heads of width {width // expected}, like all official models. Build the backbone with "
            f"{expected} heads."
        )
    return expected


def _embed(file: Official, image: Tensor) -> Tensor:
    """Compute the tokens (1, N, D) that enter the first block."""
    w, layout = file.outside, file.layout
    kernel, bias = w[f"{layout.patches}.weight"].float(), w.get(f"{layout.patches}.bias")
    patches = F.conv2d(image, kernel, None if bias is None else bias.float(), stride=kernel.shape[-2:])
    class_token = w[layout.class_token].float().reshape(1, 1, -1)
    x = torch.cat([class_token, patches.flatten(2).mT], dim=1) + w[layout.position].float()
    return _norm(x, w, layout.pre_norm, layout.eps) if layout.pre_norm else x


def _block(w: Weights, layout: Layout, x: Tensor, heads: int) -> Tensor:
    """Compute a block of the image model, (M, N, D) -> (M, N, D)."""
    x = x + _attention(w, layout, _norm(x, w, layout.norms[0], layout.eps), heads)
    h = _linear(_norm(x, w, layout.norms[1], layout.eps), w, f"{layout.mlp[0]}.")
    return x + _linear(ACTIVATIONS[layout.activation](h), w, f"{layout.mlp[1]}.")


def _attention(w: Weights, layout: Layout, x: Tensor, heads: int) -> Tensor:
    query, key, value = _linear(x, w, layout.qkv).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value)  # (M, heads, N, D/heads)
    return _linear(mixed.transpose(1, 2).flatten(2), w, f"{layout.proj}.")


def _norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    weight, bias = (w[f"{name}.{kind}"].float() for kind in ("weight", "bias"))
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _linear(x: Tensor, w: Weights, prefix: str) -> Tensor:
    return F.linear(x, w[f"{prefix}weight"].float(), w[f"{prefix}bias"].float())
