"""Laws that hold for every backbone that AIM adapts, as checks of one model that report any violation.

The tests check them for a sample of backbones, ``python -m benchmarks.coverage`` for every image transformer of its
catalogue.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.coverage import by_hand, in_onnxruntime
from peft_aim import AIMConfig
from peft_aim.attention import OnGrid
from peft_aim.clips import per_clip
from peft_aim.layers import AIMLayer, TemporalAttention, TemporalConvolution
from peft_aim.streaming import Stream
from peft_aim.tracing import Images, first_tensor, run, tensors_in
from peft_aim.video.exporting import NotExportable

CLIPS, FRAMES = 2, 4


class Broken(AssertionError):
    """Raised with the observation if a law does not hold."""


class NotOffered(Exception):
    """Raised if a backbone lacks the feature that a law is about."""


def check(
    build: Callable[[], nn.Module],
    clips: Images,
    temporal: str = "attention",
    known: Mapping[str, str] | None = None,
    further: Sequence[Callable] = (),
) -> dict[str, str]:
    """Check all laws.

    Args:
        build: Returns the backbone with random weights, the same weights on each call.
        clips: Clips as inputs of the backbone, with axes (B, T) instead of the batch axis.
        temporal: The kind of temporal branch, "attention", "conv" or "auto".
        known: Results of laws that are not checked again.
        further: Laws to check besides :data:`LAWS`.

    Returns:
        "holds" or "not offered", with the reason if it is known, by law.

    Raises:
        ValueError: If AIM rejects the backbone.
        Broken: If a law does not hold.
    """
    outcome = dict(known or {})
    for law in (*LAWS, *further):
        name = law.__name__
        if name in outcome:
            continue
        torch.manual_seed(0)
        try:
            law(build, clips, temporal)
            outcome[name] = "holds"
        except NotOffered as reason:
            outcome[name] = f"not offered: {reason}" if str(reason) else "not offered"
        except Broken as broken:
            raise Broken(f"{name}: {broken}") from broken
    return outcome


def adapt(backbone: nn.Module, **options: object) -> PeftModel:
    """Adapt a backbone, given ``num_frames`` alone, with random adapters, which are not the identity."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AIM adapts")  # some of its blocks
        return get_peft_model(backbone, AIMConfig(**{"num_frames": FRAMES, "init_weights": False, **options})).eval()


def layers(model: nn.Module) -> list[AIMLayer]:
    """Return the adapted blocks of a model; for a block that consists of two modules, its attention half."""
    found = [module for module in model.modules() if isinstance(module, AIMLayer)]
    return [layer for layer in found if not layer.anatomy.is_mlp_half]


def scores(output: object) -> Tensor:
    """Return the first floating-point tensor of an output: scores, features or tokens."""
    return next(tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.ndim)


def folded(clips: Images) -> Images:
    """Fold clips into images, ``(B, T, ...) -> (B*T, ...)``."""
    return {name: argument.flatten(0, 1) for name, argument in clips.items()}


@torch.no_grad()
def untrained_adapters_change_nothing(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """Before training, scores equal the backbone's averaged over frames, bit for bit."""
    backbone = build().requires_grad_(False)  # torch uses other kernels for some trainable matrices
    before = per_clip(scores(run(backbone, folded(clips))), CLIPS, FRAMES)
    after = scores(run(adapt(backbone, temporal=temporal, init_weights=True), clips))
    _require(torch.equal(before, after), f"scores change by up to {_difference(before, after):.1e}")


@torch.no_grad()
def frames_mix_and_clips_do_not(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """With the temporal branch alone, a frame affects the other frames of its clip and no other clip."""
    model = adapt(build(), temporal=temporal, spatial=False, joint=False, temporal_embedding=False)
    name, pictures = next(iter(clips.items()))
    changed = {**clips, name: pictures.clone()}
    changed[name][0, 1] = torch.randn_like(pictures[0, 1])
    before, after = (_tokens(model, c)[1] for c in (clips, changed))
    change = (before - after).abs().unflatten(0, (CLIPS, FRAMES, -1)).flatten(2).amax(-1)  # (B, T)
    _require(not change[1:].any(), f"another clip changes by {float(change[1:].max()):.1e}")
    others = change[0, [0, *range(2, FRAMES)]]
    _require(bool((others > 1e-6).any()), f"other frames of its clip change by {others.tolist()} only")
    one, other = scores(run(model, clips)), scores(run(model, changed))
    own_alone = not torch.equal(one[0], other[0]) and torch.equal(one[1:], other[1:])
    _require(own_alone, "scores do not change for exactly this clip")


@torch.no_grad()
def positions_never_mix(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """In the temporal branch, a token affects only its own spatial position, in all frames of its clip."""
    model = adapt(build(), temporal=temporal)
    for layer, tokens in zip(layers(model), _tokens(model, clips)[0], strict=True):
        layout, groups = layer.anatomy.tokens, layer.anatomy.tokens.groups
        before = layer.over_time("default", FRAMES, tokens)
        reached = 0
        for frame in range(FRAMES):  # each, since one with a negligible attention weight reaches no other
            changed = layout.batch_first(tokens).clone()
            position = (frame * groups, *[size // 2 for size in changed.shape[1:-1]])  # clip 0, first patch group
            changed[position] = torch.randn(layer.anatomy.width)
            after = layer.over_time("default", FRAMES, layout.restored(changed))
            change = layout.batch_first(before - after).abs().amax(-1).unflatten(0, (CLIPS, FRAMES, groups))
            here = (0, slice(None), 0, *position[1:])
            reached += int((change[here] > 0).sum()) - 1
            change[here] = 0
            _require(not change.any(), f"{int((change > 0).sum())} tokens of other spatial positions change")
        _require(reached > 0, "no other frame of the spatial position changes")


@torch.no_grad()
def time_is_free_of_space(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """Temporal attention contains no spatial bias, window, rotation or pooling, in particular at the spatial length.

    Any of them would distinguish positions, so permuted frames must give permuted results. If the attention's weights
    have the usual names, the results must also equal softmax attention computed by hand. A convolution over time must
    equal one computed by hand.
    """
    model = adapt(build(), temporal=temporal)
    for layer, tokens in zip(layers(model), _tokens(model, clips)[0], strict=True):
        if isinstance(layer.aim_settings["default"].temporal, TemporalConvolution):
            y, expected = layer.over_time("default", FRAMES, tokens), by_hand.convolution(layer, tokens, FRAMES)
            _require(_close(y, expected), f"a convolution by hand differs by {_difference(y, expected):.1e}")
            continue
        attention, width = layer.base_layer.get_submodule(layer.anatomy.attention), layer.anatomy.width
        positions = tokens[0].numel() // width
        for length in {FRAMES, min(positions, 256), *_window(attention)}:
            x, order = torch.randn(2, length, width), torch.randperm(length)
            y, moved = (first_tensor(layer.anatomy.attend(attention, tokens)) for tokens in (x, x[:, order]))
            _require(
                _close(moved, y[:, order]),
                f"permuting {length} frames changes results by {_difference(moved, y[:, order]):.1e}",
            )
            expected = None if isinstance(layer.anatomy.attend, OnGrid) else by_hand.attention(attention, x)
            if expected is not None:
                _require(_close(y, expected), f"softmax attention by hand differs by {_difference(y, expected):.1e}")


@torch.no_grad()
def causal_adapters_see_no_later_frame(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """Causal adapters pass information to later frames only, and give a stream the scores of the frames so far.

    They are made for half of the frames, so that temporal attention does not reach all earlier ones. Where attention
    cannot be causal, the law holds with ``temporal="auto"``, as the error advises.
    """
    try:
        model = adapt(build(), temporal=temporal, causal=True, num_frames=FRAMES // 2, temporal_conv=True)
    except ValueError as error:
        if "causal=True is not possible" not in str(error):
            raise
        causal_adapters_see_no_later_frame(build, clips, "auto")
        raise NotOffered(str(error).splitlines()[1].partition(": ")[2]) from error
    name, pictures = next(iter(clips.items()))
    changed, now = {**clips, name: pictures.clone()}, FRAMES // 2
    changed[name][0, now] = pictures[1, now]
    before, after = (_tokens(model, c)[1].unflatten(0, (CLIPS, FRAMES, -1)) for c in (clips, changed))
    differs = (before != after).flatten(2).any(-1)[0].tolist()
    expected = [time >= now for time in range(FRAMES)]
    _require(differs == expected, f"frame {now} changes frames {differs}, not {expected}")
    for layer in layers(model):
        _is_that_of_its_window(layer)
    if len(clips) > 1 or not pictures.is_floating_point():  # which a stream does not take
        return
    try:
        _stream_gives_the_same(model, name, pictures[:1])
    except Broken:  # some models amplify rounding too much
        _stream_gives_the_same(model.double(), name, pictures[:1].double())


def _is_that_of_its_window(layer: AIMLayer) -> None:
    """Require that causal attention of the last frame is attention of a clip that begins where the band does."""
    branch, anatomy = layer.aim_settings["default"].temporal, layer.anatomy
    if isinstance(branch, TemporalAttention):
        attention, x = layer.base_layer.get_submodule(anatomy.attention), torch.randn(2, FRAMES, anatomy.width)
        found = anatomy.causal(attention, x, branch.width)[:, -1]
        expected = first_tensor(anatomy.attend(attention, x[:, -branch.width :]))[:, -1]
        _require(_close(found, expected), f"attention to a window differs by {_difference(found, expected):.1e}")


def _stream_gives_the_same(model: nn.Module, name: str, clip: Tensor) -> None:
    """Require that scores of a stream are those of the frames so far, unless the model returns tokens only."""
    stream = Stream(model)
    for time in range(FRAMES):
        output = tensors_in(run(model, {name: clip[:, : time + 1]}))
        expected = next((tensor for tensor in output if tensor.is_floating_point() and tensor.ndim == 2), None)
        if expected is None:
            return
        change = _difference(stream.push(clip[:, time]), expected) / float(expected.abs().max())
        _require(change <= 1e-5, f"scores of a stream differ by {change:.1e} of their size after {time + 1} frames")


def gradients_reach_every_adapter_and_nothing_else(
    build: Callable, clips: Images, temporal: str = "attention"
) -> None:
    """Every adapter parameter gets a gradient; all other parameters are frozen and get none."""
    for key, parameter in _backward(adapt(build(), temporal=temporal), clips).named_parameters():
        if ".aim_" in key:
            _require(parameter.grad is not None and bool(parameter.grad.any()), f"{key} gets no gradient")
        else:
            _require(parameter.grad is None and not parameter.requires_grad, f"{key} is not frozen")


@torch.no_grad()
def saved_and_loaded_gives_the_same(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """A saved adapter, loaded into a fresh backbone, gives the same scores bit for bit."""
    model = adapt(build(), temporal=temporal, temporal_adapters=1 + (temporal != "conv"))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(build(), folder).eval()
    one, other = scores(run(model, clips)), scores(run(loaded, clips))
    _require(torch.equal(one, other), f"scores change by up to {_difference(one, other):.1e}")


@torch.no_grad()
def unloading_gives_back_the_backbone(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """``unload()`` restores the backbone: its modules, weights, hooks and results."""
    backbone, images = build(), folded(clips)
    untouched = copy.deepcopy(backbone)
    unloaded = adapt(backbone, temporal=temporal).unload()
    _require(unloaded is backbone and repr(unloaded) == repr(untouched), "the model or its modules differ")
    _require(_hooks(unloaded) == _hooks(untouched), "hooks remain")
    expected = untouched.state_dict()
    same = all(torch.equal(tensor, expected[key]) for key, tensor in unloaded.state_dict().items())
    _require(same and len(expected) == len(unloaded.state_dict()), "weights change")
    _require(torch.equal(scores(run(unloaded, images)), scores(run(untouched, images))), "results change")


def checkpointing_gives_the_same_gradients(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """Gradients are the same with and without the backbone's own gradient checkpointing."""
    wanted = _backward(adapt(build(), temporal=temporal), clips)
    backbone = build()
    if getattr(backbone, "supports_gradient_checkpointing", False):
        # named otherwise before transformers 5.22
        enable = getattr(backbone, "activation_checkpointing_enable", None) or backbone.gradient_checkpointing_enable
    elif hasattr(backbone, "set_grad_checkpointing"):
        enable = backbone.set_grad_checkpointing
    else:
        raise NotOffered
    model = adapt(backbone, temporal=temporal)
    try:
        enable()
    except (AssertionError, AttributeError, NotImplementedError) as error:  # timm asserts that the model supports it
        raise NotOffered from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
        got = dict(_backward(model, clips).named_parameters())
    for key, parameter in wanted.named_parameters():
        if parameter.grad is not None:
            same = torch.allclose(
                got[key].grad, parameter.grad, rtol=1e-3, atol=1e-4 * float(parameter.grad.abs().max())
            )
            _require(same, f"the gradient of {key} changes by {_difference(got[key].grad, parameter.grad):.1e}")


@torch.no_grad()
def onnxruntime_gives_the_same(build: Callable, clips: Images, temporal: str = "attention") -> None:
    """Exported to ONNX, a model gives the same scores in onnxruntime, for another number of clips."""
    model = adapt(build(), temporal=temporal).base_model.model
    more = {name: torch.cat([argument, argument[:1]]) for name, argument in clips.items()}
    try:
        found = in_onnxruntime.scored(model, clips, more)
    except NotExportable as error:
        raise NotOffered(str(error)) from error
    expected = scores(run(model, more))
    if _close(found, expected):
        return
    exact = scores(run(model.double(), {name: _doubled(argument) for name, argument in more.items()}))
    change, rounding = _difference(found, expected), _difference(exact, expected)
    if change > 10 * rounding:  # more than by the rounding that some models amplify
        alone, images = build(), {name: argument.flatten(0, 1) for name, argument in clips.items()}
        own = _difference(in_onnxruntime.scored(alone, images, images), scores(run(alone, images)))
        if own > 0.1 * change:
            raise NotOffered(f"in onnxruntime, the backbone alone changes its scores, too, by up to {own:.1e}")
        raise Broken(f"scores change by up to {change:.1e}, by rounding {rounding:.1e}")


LAWS = (
    untrained_adapters_change_nothing,
    frames_mix_and_clips_do_not,
    positions_never_mix,
    time_is_free_of_space,
    causal_adapters_see_no_later_frame,
    gradients_reach_every_adapter_and_nothing_else,
    saved_and_loaded_gives_the_same,
    unloading_gives_back_the_backbone,
    checkpointing_gives_the_same_gradients,
)
SLOW_LAWS = (onnxruntime_gives_the_same,)  # seconds for each model: tests check them for a few models only


def _tokens(model: nn.Module, clips: Images) -> tuple[list[Tensor], Tensor]:
    """Return the input tokens of each adapted block in its last run, and the output of the last, batch first."""
    given, returned, handles = {}, [], []

    def note_input(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        given[layer] = (args[0] if args else next(iter(kwargs.values()))).clone()

    def note_output(layer: nn.Module, args: tuple, output: object) -> None:
        returned.append(first_tensor(output).clone())

    for layer in layers(model):
        handles.append(layer.register_forward_pre_hook(note_input, with_kwargs=True))
        handles.append(layer.register_forward_hook(note_output))
    run(model, clips)
    for handle in handles:
        handle.remove()
    return [given[layer] for layer in layers(model)], layers(model)[-1].anatomy.tokens.batch_first(returned[-1])


def _backward(model: nn.Module, clips: Images) -> nn.Module:
    model.train()
    for module in model.modules():  # dropout masks would differ between runs
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


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _close(a: Tensor, b: Tensor) -> bool:
    return _difference(a, b) <= 1e-4 * max(1.0, float(b.abs().max()))


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.shape == b.shape else math.inf
