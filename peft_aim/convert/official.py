"""Reads checkpoints of the official AIM code, without running any code that they may contain."""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Names of the adapters, and of their two layers, in the official code and in this package.
ADAPTERS = {"T_Adapter_in": "temporal_in", "T_Adapter": "temporal", "S_Adapter": "spatial", "MLP_Adapter": "joint"}
HALVES = {"D_fc1": "down", "D_fc2": "up"}

# mmcv saves the best score so far with the weights, as a numpy scalar.
NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Names of the frozen weights of an image model in the official code, and settings that it is run with.

    Attributes:
        name: Name of the layout.
        activation: Activation of the MLPs.
        eps: Epsilon of the norms.
        class_token: Name of the class token.
        position: Name of the position embedding.
        patches: Name of the patch embedding's convolution.
        pre_norm: Name of the norm before the first block, None if there is none.
        blocks: Name of the list of blocks. The following names are those inside a block.
        qkv: Prefix of the names of the fused projection's weight and bias.
        proj: Name of the output projection.
        norms: Names of the two norms.
        mlp: Names of the two layers of the MLP.
    """

    name: str
    activation: str
    eps: float
    class_token: str
    position: str
    patches: str
    pre_norm: str | None
    blocks: str
    qkv: str
    proj: str
    norms: tuple[str, str]
    mlp: tuple[str, str]

    def outside(self) -> list[str]:
        """Return the names of the tensors that a checkpoint must have outside of blocks."""
        norm = [f"{self.pre_norm}.weight", f"{self.pre_norm}.bias"] if self.pre_norm else []
        return [self.class_token, self.position, f"{self.patches}.weight", *norm]

    def inside(self) -> list[str]:
        """Return the names of the tensors that a checkpoint must have in each block."""
        layers = [self.qkv, *(f"{name}." for name in (self.proj, *self.norms, *self.mlp))]
        return [f"{layer}{kind}" for layer in layers for kind in ("weight", "bias")]


CLIP = Layout(
    name="CLIP",
    activation="QuickGELU",
    eps=1e-5,
    class_token="class_embedding",
    position="positional_embedding",
    patches="conv1",
    pre_norm="ln_pre",
    blocks="transformer.resblocks",
    qkv="attn.in_proj_",
    proj="attn.out_proj",
    norms=("ln_1", "ln_2"),
    mlp=("mlp.c_fc", "mlp.c_proj"),
)
IMAGENET = Layout(
    name="vit_imagenet",
    activation="GELU",
    eps=1e-6,
    class_token="cls_token",
    position="pos_embed",
    patches="patch_embed.proj",
    pre_norm=None,
    blocks="blocks",
    qkv="attn.qkv.",
    proj="attn.proj",
    norms=("norm1", "norm2"),
    mlp=("mlp.fc1", "mlp.fc2"),
)


@dataclass(frozen=True)
class Official:
    """The content of an official checkpoint.

    Attributes:
        source: The file, for error messages.
        layout: The layout of its frozen weights.
        outside: Frozen weights outside of blocks, by their names in the file without "backbone.".
        blocks: Frozen weights of each block, by their names inside it.
        adapters: Adapters of each block, by names such as "temporal_down.weight".
        temporal_embedding: The temporal embedding (1, T, D).
        norm: Weight and bias of the final norm.
        head: Weight and bias of the head.
    """

    source: str
    layout: Layout
    outside: Weights
    blocks: list[Weights]
    adapters: list[Weights]
    temporal_embedding: Tensor
    norm: Weights
    head: Weights

    @property
    def width(self) -> int:
        """Token width D."""
        return self.temporal_embedding.shape[-1]

    @property
    def bottleneck(self) -> int:
        """Width of the bottlenecks."""
        return self.adapters[0]["spatial_down.weight"].shape[0]

    @property
    def temporal_adapters(self) -> int:
        """Number of bottlenecks of the temporal branch, 1 or 2."""
        return 2 if "temporal_in_down.weight" in self.adapters[0] else 1

    def name_of(self, block: int | None, name: str) -> str:
        """Return the name in the file of a frozen tensor of a block, or outside of blocks if ``block`` is None."""
        return f"backbone.{name}" if block is None else f"backbone.{self.layout.blocks}.{block}.{name}"


def read_official(checkpoint: str | os.PathLike | Mapping[str, Any]) -> Official:
    """Read a checkpoint of the official code.

    Args:
        checkpoint: Path of the file, or its content: a state dict, or a dict with one as "state_dict".

    Raises:
        ValueError: If it cannot be read as plain tensors, is not an AIM checkpoint, or is incomplete.
    """
    in_memory = isinstance(checkpoint, Mapping)
    if not in_memory and not isinstance(checkpoint, (str, os.PathLike)):
        raise ValueError(
            f"checkpoint={checkpoint!r} is neither a path nor a dict of tensors. Give an official AIM checkpoint."
        )
    source = "checkpoint={...}" if in_memory else os.fspath(checkpoint)
    loaded = checkpoint if in_memory else _load(source)
    _check_not_st_adapter(loaded, source)
    weights = _state_dict(loaded, source)
    layout = _layout(weights, source)
    inside: dict[int, Weights] = defaultdict(dict)
    outside = {name.removeprefix("backbone."): t for name, t in weights.items() if name.startswith("backbone.")}
    for name in list(outside):
        match = re.fullmatch(rf"{re.escape(layout.blocks)}\.(\d+)\.(.+)", name)
        if match:
            inside[int(match[1])][match[2]] = outside.pop(name)
    embedding = outside.pop("temporal_embedding", None)
    norm = {name.removeprefix("ln_post."): outside.pop(name) for name in list(outside) if name.startswith("ln_post.")}
    head = {name.removeprefix("cls_head."): t for name, t in weights.items() if name.startswith("cls_head.")}
    blocks = [inside[i] for i in sorted(inside)]
    adapters = [_take_adapters(block) for block in blocks]
    official = Official(source, layout, outside, blocks, adapters, embedding, norm, _plain_head(head, source))
    _check_complete(official, sorted(inside))
    return official


class _Unread:
    """Placeholder for metadata saved with the weights, which is unpickled to this class instead of its own."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _load(path: str) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Unread, name) for name in NUMPY]):
            warnings.simplefilter("ignore")  # the kind of pickle matters only if it cannot be read
            return torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}. Give the path of an official AIM checkpoint.") from error
    except Exception as error:  # a broken file may raise anything
        classes = _unsafe_classes(path, error)
        if not classes:
            raise ValueError(
                f"{path} is broken, or is not a torch.save file ({_reason(error)}). Get the file again."
            ) from error
        raise ValueError(
            f"{path} contains more than tensors, and loading it would run code: {', '.join(classes)}. None of it was "
            "run. If you trust the file, save only its tensors to a new one, on an isolated machine: "
            'torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, new_path).'
        ) from error


def _unsafe_classes(path: str, error: Exception) -> list[str]:
    """Return the classes and functions that loading a file would call, as far as they are known without loading it."""
    try:
        return sorted({*torch.serialization.get_unsafe_globals_in_checkpoint(path)} - {*NUMPY})
    except Exception:  # an older format or a broken file
        return sorted(set(re.findall(r"GLOBAL (\S+\.\S+)", str(error))))


def _reason(error: Exception) -> str:
    """Return the reason for an error, without torch's advice on how to load the file anyway."""
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return type(error).__name__ if "weights_only" in reason else f"{type(error).__name__}: {reason}".rstrip(". ")


def _check_not_st_adapter(loaded: Any, source: str) -> None:
    """Check that it is no checkpoint of the official ST-Adapter code, whose "model" has the trained weights only."""
    weights = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    found = next((str(name) for name in weights if ".adapter_pre_" in str(name)), None) if weights else None
    if found is not None:
        raise ValueError(
            f"{source} is a checkpoint of ST-Adapter ({found}). Its adapters leave the class token out and act before "
            "the MLP, or before both attention and MLP; AIM's convolution over time acts on all tokens, before the "
            "block, so that a converted adapter would score otherwise. Train a new one with temporal='conv'."
        )


def _state_dict(loaded: Any, source: str) -> Weights:
    """Return the floating-point tensors of a loaded checkpoint by name, without the prefix of a wrapper."""
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"{source} contains a {type(weights if weights is not None else loaded).__name__} instead of a state dict."
            " Give an official AIM checkpoint, a dict of tensors, or a dict with one as 'state_dict'."
        )
    tensors = {str(name): t for name, t in weights.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _layout(weights: Weights, source: str) -> Layout:
    if not any(part in ADAPTERS for name in weights for part in name.split(".")):
        raise ValueError(
            f"{source} is not an AIM checkpoint: none of its {len(weights)} tensors belongs to an S_Adapter, "
            "T_Adapter or MLP_Adapter. For a pretrained image model, use peft.get_peft_model(model, AIMConfig(...)) "
            "instead."
        )
    swin = next((name for name in weights if re.search(r"(^|\.)layers\.\d+\.blocks\.\d+\.", name)), None)
    if swin is not None:
        raise ValueError(
            f"{source} is the checkpoint of a Swin ({swin}). Only the layouts of CLIP and of ViT from IN-21K are "
            "supported: the official Swin has a learned bias over time, which this package does not have. Train a new "
            "adapter for Swin."
        )
    for layout in (CLIP, IMAGENET):
        if any(name.startswith(f"backbone.{layout.blocks}.") for name in weights):
            return layout
    raise ValueError(
        f"{source} has adapters, such as {next(n for n in weights if '_Adapter.' in n)}, but its blocks are named "
        f"neither backbone.{CLIP.blocks}.N nor backbone.{IMAGENET.blocks}.N. Only these layouts of the official code "
        "are supported: rename the tensors."
    )


def _take_adapters(block: Weights) -> Weights:
    """Remove the adapters from a block's weights, and return them with this package's names."""
    adapters = {}
    for name in list(block):
        adapter, _, rest = name.partition(".")
        half, _, kind = rest.partition(".")
        if adapter in ADAPTERS and half in HALVES:
            adapters[f"{ADAPTERS[adapter]}_{HALVES[half]}.{kind}"] = block.pop(name)
    return adapters


def _plain_head(head: Weights, source: str) -> Weights:
    """Return the weight and bias of a head that is one linear layer."""
    if head.keys() != {"fc_cls.weight", "fc_cls.bias"}:
        raise ValueError(
            f"{source} has a head of {', '.join(sorted(head)) or 'no tensors'} instead of cls_head.fc_cls.weight and "
            ".bias. Only the official code's linear head can be converted."
        )
    return {name.removeprefix("fc_cls."): tensor for name, tensor in head.items()}


def _check_complete(file: Official, numbers: list[int]) -> None:
    """Check that a checkpoint has all tensors of a model, with shapes that match each other."""
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{file.source} has gaps in its blocks {numbers}. Get the file again.")
    missing = [file.name_of(None, name) for name in file.layout.outside() if name not in file.outside]
    missing += ["backbone.temporal_embedding"] * (file.temporal_embedding is None)
    missing += [f"backbone.ln_post.{kind}" for kind in ("weight", "bias") if kind not in file.norm]
    two = any(name.startswith("temporal_in_") for adapters in file.adapters for name in adapters)
    for i, block in enumerate(file.blocks):
        missing += [file.name_of(i, name) for name in file.layout.inside() if name not in block]
        missing += [file.name_of(i, name) for name in _missing_adapters(file.adapters[i], two)]
    if missing:
        more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
        raise ValueError(f"{file.source} lacks {', '.join(missing[:6])}{more}. Get the complete file again.")
    _check_shapes(file)


def _missing_adapters(found: Weights, two: bool) -> list[str]:
    """Return the official names of adapter tensors that a block lacks; all blocks need T_Adapter_in if ``two``."""
    wanted = [name for name in ADAPTERS if two or name != "T_Adapter_in"]
    names = {
        f"{a}.{h}.{k}": f"{ADAPTERS[a]}_{HALVES[h]}.{k}" for a in wanted for h in HALVES for k in ("weight", "bias")
    }
    return [official for official, ours in names.items() if ours not in found]


def _check_shapes(file: Official) -> None:
    """Check that adapters, temporal embedding, final norm and head have the same width."""
    width, hidden = file.width, file.bottleneck
    wrong = {}
    for i, adapters in enumerate(file.adapters):
        for name, tensor in adapters.items():
            side, _, kind = name.rpartition("_")[2].partition(".")
            shape = (hidden, width) if side == "down" else (width, hidden)
            if tuple(tensor.shape) != (shape if kind == "weight" else shape[:1]):
                wrong[f"block {i} {name}"] = tensor
    if file.temporal_embedding.ndim != 3 or file.temporal_embedding.shape[0] != 1:
        wrong["backbone.temporal_embedding"] = file.temporal_embedding
    wrong |= {f"backbone.ln_post.{kind}": t for kind, t in file.norm.items() if tuple(t.shape) != (width,)}
    if tuple(file.head["weight"].shape) != (len(file.head["bias"]), width):
        wrong["cls_head.fc_cls.weight"] = file.head["weight"]
    if wrong:
        listed = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in list(wrong.items())[:6])
        raise ValueError(
            f"{file.source} has tensors that do not match its width {width} and its bottleneck width {hidden}: "
            f"{listed}. Get the file again."
        )
