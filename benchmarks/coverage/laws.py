"""What holds for every backbone that AIM adapts, as checks of one model, which tell what they saw if it doesn't hold.

The tests run them over a sample, ``python -m benchmarks.coverage`` over every image transformer that can be built.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from peft_aim import AIMConfig
from peft_aim.attention import OnGrid
from peft_aim.clips import per_clip
from peft_aim.layers import AIMLayer
from peft_aim.tracing import Images, first_tensor, run, tensors_in

CLIPS, FRAMES = 2, 4

# Attention between channels, which has the same parts as softmax attention over tokens but computes something else.
BETWEEN_CHANNELS = ("XCA", "ChannelAttention", "ChannelAttentionV2", "CrossCovarianceAttn")


class Broken(AssertionError):
    """Raised where a law does not hold, with what was seen."""


class NotOffered(Exception):
    """Raised where a backbone offers nothing that a law could be about."""


def check(build: Callable[[], nn.Module], clips: Images) -> dict[str, str]:
    """Check all laws.

    Args:
        build: Returns the backbone with random weights, the same ones at each call.
        clips: Clips to run, as the backbone takes images, with axes (B, T) in place of one of images.

    Returns:
        By law, "holds" or "not offered".

    Raises:
        ValueError: If AIM refuses the backbone.
        Broken: If a law does not hold.
    """
    outcome = {}
    for law in LAWS:
        name = law.__name__
        torch.manual_seed(0)
        try:
            law(build, clips)
            outcome[name] = "holds"
        except NotOffered:
            outcome[name] = "not offered"
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken
    return outcome


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    """Adapt a backbone, with nothing given but the length of clips, and adapters that are no identity."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AIM adapts")  # some of its blocks
        return get_peft_model(backbone, AIMConfig(**{"num_frames": FRAMES, "init_weights": False, **options})).eval()


def layers(model: nn.Module) -> list[AIMLayer]:
    """Return the adapted blocks of a model."""
    return [module for module in model.modules() if isinstance(module, AIMLayer)]


def scores(output: object) -> Tensor:
    """Return the first tensor of what a model returns: scores, features or tokens."""
    return next(tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.ndim)


def folded(clips: Images) -> Images:
    """Return the images of clips."""
    return {name: argument.flatten(0, 1) for name, argument in clips.items()}


@torch.no_grad()
def untrained_adapters_change_nothing(build: Callable, clips: Images) -> None:
    """Identity at the start, bit for bit."""
    backbone = build().requires_grad_(False)  # torch multiplies some matrices otherwise if they are trained
    before = per_clip(scores(run(backbone, folded(clips))), CLIPS, FRAMES)
    after = scores(run(adapt(backbone, init_weights=True), clips))
    _require(torch.equal(before, after), f"scores change by up to {_difference(before, after):.1e}")


@torch.no_grad()
def frames_mix_and_clips_do_not(build: Callable, clips: Images) -> None:
    """By the temporal branch alone, a frame changes what the other frames of its clip become, and no other clip."""
    model = adapt(build(), spatial=False, joint=False, temporal_embedding=False)
    name, pictures = next(iter(clips.items()))
    changed = {**clips, name: pictures.clone()}
    changed[name][0, 1] = torch.randn_like(pictures[0, 1])
    before, after = (_tokens(model, c)[1] for c in (clips, changed))
    change = (before - after).abs().unflatten(0, (CLIPS, FRAMES, -1)).flatten(2).amax(-1)  # (B, T)
    _require(not change[1:].any(), f"another clip changes by {float(change[1:].max()):.1e}")
    others = change[0, [0, *range(2, FRAMES)]]
    _require(bool((others > 1e-6).any()), f"other frames of its clip change by {others.tolist()} only")
    one, other = scores(run(model, clips)), scores(run(model, changed))
    _require(not torch.equal(one[0], other[0]) and torch.equal(one[1:], other[1:]), "scores don't follow")


@torch.no_grad()
def places_never_mix(build: Callable, clips: Images) -> None:
    """In the temporal branch a token changes what its own place gets, at all frames of its clip, and nothing else."""
    model = adapt(build())
    for layer, tokens in zip(layers(model), _tokens(model, clips)[0], strict=True):
        axis, groups = layer.anatomy.channels, layer.anatomy.groups
        before = layer._attend_along_time("default", FRAMES, tokens)
        reached = 0
        for frame in range(FRAMES):  # one whose weight is next to nothing reaches nobody
            changed = tokens.movedim(axis, -1).clone()
            place = (frame * groups, *[size // 2 for size in changed.shape[1:-1]])  # clip 0, the frame's first group
            changed[place] = torch.randn(layer.anatomy.width)
            after = layer._attend_along_time("default", FRAMES, changed.movedim(-1, axis))
            change = (before - after).movedim(axis, -1).abs().amax(-1).unflatten(0, (CLIPS, FRAMES, groups))
            here = (0, slice(None), 0, *place[1:])
            reached += int((change[here] > 0).sum()) - 1
            change[here] = 0
            _require(not change.any(), f"{int((change > 0).sum())} tokens of other places change")
        _require(reached > 0, "no other frame of the place changes")


@torch.no_grad()
def time_is_free_of_space(build: Callable, clips: Images) -> None:
    """Along time no bias, window, rotation or pooling of space acts, at the length of the spatial call above all.

    They would tell positions apart. Where the attention's own weights are where they usually are, softmax attention
    computed by hand has to give the same.
    """
    model = adapt(build())
    for layer, tokens in zip(layers(model), _tokens(model, clips)[0], strict=True):
        attention, width = layer.base_layer.get_submodule(layer.anatomy.attention), layer.anatomy.width
        places = tokens[0].numel() // width
        for length in {FRAMES, min(places, 256), *_window(attention)}:
            x, order = torch.randn(2, length, width), torch.randperm(length)
            y, moved = (first_tensor(layer.anatomy.attend(attention, tokens)) for tokens in (x, x[:, order]))
            _require(
                _close(moved, y[:, order]), f"the order of {length} frames acts by {_difference(moved, y[:, order])}"
            )
            expected = None if isinstance(layer.anatomy.attend, OnGrid) else by_hand(attention, x)
            if expected is not None:
                _require(_close(y, expected), f"by hand it is other by {_difference(y, expected):.1e}")


def gradients_reach_every_adapter_and_nothing_else(build: Callable, clips: Images) -> None:
    """All that is trainable gets a gradient, and it is the adapters' alone."""
    for key, parameter in _backward(adapt(build()), clips).named_parameters():
        if ".aim_" in key:
            _require(parameter.grad is not None and bool(parameter.grad.any()), f"{key} gets no gradient")
        else:
            _require(parameter.grad is None and not parameter.requires_grad, f"{key} is not frozen")


@torch.no_grad()
def saved_and_loaded_gives_the_same(build: Callable, clips: Images) -> None:
    """Saved, and loaded into a fresh copy, the scores are the same bit for bit."""
    model = adapt(build(), temporal_adapters=2)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(build(), folder).eval()
    one, other = scores(run(model, clips)), scores(run(loaded, clips))
    _require(torch.equal(one, other), f"scores change by up to {_difference(one, other):.1e}")


@torch.no_grad()
def unloading_gives_back_the_backbone(build: Callable, clips: Images) -> None:
    """After ``unload()`` weights, hooks and results are the backbone's own."""
    backbone, images = build(), folded(clips)
    untouched = copy.deepcopy(backbone)
    unloaded = adapt(backbone).unload()
    _require(unloaded is backbone and repr(unloaded) == repr(untouched), "it is another model")
    _require(_hooks(unloaded) == _hooks(untouched), "hooks stay")
    expected = untouched.state_dict()
    same = all(torch.equal(tensor, expected[key]) for key, tensor in unloaded.state_dict().items())
    _require(same and len(expected) == len(unloaded.state_dict()), "weights change")
    _require(torch.equal(scores(run(unloaded, images)), scores(run(untouched, images))), "results change")


def checkpointing_gives_the_same_gradients(build: Callable, clips: Images) -> None:
    """Gradients are the same whether or not the backbone recomputes its blocks."""
    wanted = _backward(adapt(build()), clips)
    backbone = build()
    if getattr(backbone, "supports_gradient_checkpointing", False):
        # before transformers 5.22 it has another name
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    elif hasattr(backbone, "set_grad_checkpointing"):
        enable = backbone.set_grad_checkpointing
    else:
        raise NotOffered
    model = adapt(backbone)
    try:
        enable()
    except (AssertionError, AttributeError, NotImplementedError) as error:  # timm asserts that it can
        raise NotOffered from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        got = dict(_backward(model, clips).named_parameters())
    for key, parameter in wanted.named_parameters():
        if parameter.grad is not None:
            same = torch.allclose(
                got[key].grad, parameter.grad, rtol=1e-3, atol=1e-4 * float(parameter.grad.abs().max())
            )
            _require(same, f"that of {key} changes by {_difference(got[key].grad, parameter.grad):.1e}")


LAWS = (
    untrained_adapters_change_nothing,
    frames_mix_and_clips_do_not,
    places_never_mix,
    time_is_free_of_space,
    gradients_reach_every_adapter_and_nothing_else,
    saved_and_loaded_gives_the_same,
    unloading_gives_back_the_backbone,
    checkpointing_gives_the_same_gradients,
)


def by_hand(attention: nn.Module, x: Tensor) -> Tensor | None:
    """Compute softmax attention of ``(M, T, D)`` from weights under the usual names, None if they aren't there."""
    heads, qkv = getattr(attention, "num_heads", None), getattr(attention, "qkv", None)
    own = {name for name, module in attention.named_children() if any(True for _ in module.parameters())}
    if isinstance(attention, nn.MultiheadAttention):
        features, out = x @ attention.in_proj_weight.mT + attention.in_proj_bias, attention.out_proj
    elif own == {"qkv", "proj"} and isinstance(qkv, nn.Linear) and qkv.out_features == 3 * x.shape[-1]:
        plain = heads and not getattr(attention, "head_first", False) and not hasattr(attention, "q_bias")
        if not plain or type(attention).__name__ in BETWEEN_CHANNELS:
            return None
        features, out = qkv(x), attention.proj
    else:
        return None
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in features.chunk(3, dim=-1))
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    return out((weights @ v).transpose(1, 2).flatten(2))


def _tokens(model: nn.Module, clips: Images) -> tuple[list[Tensor], Tensor]:
    """Return what each adapted block is called on, and what the last one returns."""
    given, returned, handles = [], [], []

    def note_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        given.append((args[0] if args else next(iter(kwargs.values()))).clone())

    def note_output(layer: nn.Module, args: tuple, output: object) -> None:
        returned.append(first_tensor(output).clone())

    for layer in layers(model):
        handles.append(layer.register_forward_pre_hook(note_input, with_kwargs=True))
        handles.append(layer.register_forward_hook(note_output))
    run(model, clips)
    for handle in handles:
        handle.remove()
    return given, returned[-1]


def _backward(model: nn.Module, clips: Images) -> nn.Module:
    model.train()
    for module in model.modules():  # what is drawn at random would differ from run to run
        if isinstance(module, nn.Dropout):
            module.eval()
    scores(run(model, clips)).square().mean().backward()
    return model


def _window(attention: nn.Module) -> list[int]:
    window = getattr(attention, "window_size", None)
    sizes = window if isinstance(window, (tuple, list)) else (window, window)
    return [sizes[0] * sizes[1]] if all(isinstance(size, int) for size in sizes) else []


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def _close(a: Tensor, b: Tensor) -> bool:
    return _difference(a, b) <= 1e-4 * max(1.0, float(b.abs().max()))


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.shape == b.shape else math.inf
