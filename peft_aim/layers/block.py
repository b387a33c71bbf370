"""AIMLayer: a block of an image transformer with its adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peft_aim.attention import off_the_fast_path
from peft_aim.backbone import Anatomy
from peft_aim.clips import ClipShape, Frames, Part, PerThread, Span
from peft_aim.config import AIMConfig
from peft_aim.layers.adapter import bottleneck, drop_path
from peft_aim.layers.base import AIMTunerLayer
from peft_aim.layers.embedding import embed, new_embedding
from peft_aim.layers.temporal import TemporalBranch, new_bottleneck, temporal_branch
from peft_aim.recompute import Widths, cheap_from, hidden_widths, recomputing
from peft_aim.tracing import (
    Layout,
    first_argument,
    first_parameter,
    first_tensor,
    replace_first,
    tokens_given,
    with_tokens,
)

WITHOUT_NORM = (
    "Attention or MLP runs, but not the norm {} before it, which takes the tokens that its adapters need. Call one "
    "after the other, as the model did when the adapters were added; activation checkpointing has to recompute both."
)
WITHOUT_GRADIENTS = (
    "The temporal branch before {} was computed without gradients, but what it is added to has some. Checkpoint with "
    "use_reentrant=False, or the sum as well."
)
BRANCHES = ("temporal", "spatial", "joint")  # in the order in which they run
TEMPORAL = "aim_temporal_"  # how the names of the temporal branch's containers begin
TEMPORAL_WEIGHTS = ("inner_embedding", "conv", "in_down", "in_up", "down", "up")


@dataclass(frozen=True)
class Change:
    """What the temporal branch has added to the tokens, for the end that adds it again.

    Attributes:
        tokens: The tokens.
        call: The call of the model, None in backward. If it fails before the end runs, a later one must not add this.
        has_gradients: Whether gradients were recorded.
    """

    tokens: Tensor
    call: ClipShape | None
    has_gradients: bool


@dataclass(frozen=True)
class BranchSettings:
    """Settings of one adapter in one block, besides its weights.

    Attributes:
        temporal: How the temporal branch is computed.
        scale: Factor s on the joint adapter.
        drop_path: Stochastic depth rate of this block.
        recompute: The setting of activation checkpointing.
        averaged: Over how many of the last frames of a clip outputs are averaged, None for all.
    """

    temporal: TemporalBranch
    scale: float
    drop_path: float
    recompute: str
    averaged: int | None

    @classmethod
    def of(cls, config: AIMConfig, anatomy: Anatomy, depth: float) -> BranchSettings:
        """Return the settings for a block from an adapter's options."""
        temporal = temporal_branch(config, anatomy)
        averaged = config.num_frames if config.causal else None
        return cls(temporal, config.scale, config.drop_path * depth, config.recompute, averaged)


class AIMLayer(AIMTunerLayer):
    r"""A block of an image transformer with AIM's adapters (paper, figure 2e).

    The block runs its own forward, with the adapters attached to its parts:

    .. math::
        x &\leftarrow x + \mathrm{DropPath}(T(\mathrm{attn}_T(\mathrm{norm}_1(x)))) \\
        x &\leftarrow x + a + S(a), \quad a = \mathrm{attn}(\mathrm{norm}_1(x)) \\
        x &\leftarrow x + \mathrm{mlp}(h) + \mathrm{DropPath}(s\,J(h)), \quad h = \mathrm{norm}_2(x)

    The first line runs before the block, with its temporal attention :math:`\mathrm{attn}_T`, or is a convolution over
    time instead (:mod:`peft_aim.layers.temporal`). S and J are added by hooks
    on the block's attention and MLP, so everything that the block applies to their outputs (LayerScale, windows, a
    norm) also applies to S and J. In post-norm blocks, the first line is
    :math:`x + \mathrm{DropPath}(T(\mathrm{norm}_1(\mathrm{attn}_T(x))))`.

    A block that consists of two modules has a layer for each: the attention half has the first two lines, the MLP half
    the third. Where the skip connection is outside, the caller computes :math:`x + f(x)`. Then the layer of the
    attention half f returns :math:`t + f(x + t)` with the temporal branch t, so that the sum is
    :math:`(x + t) + f(x + t)`.

    The caller may also compute :math:`x + \mathrm{drop}(f(\mathrm{norm}(x)))`. Then x is noted where the norm takes
    it, the layer returns :math:`f(\mathrm{norm}(x + t))`, and t is added to what the dropout returns.

    Args:
        block: The block.
        anatomy: Its parts.
        frames: Maps tokens to the number of frames of their clips.
        depth: Position of the block, from 0 for the first to 1 for the last.
        norm: The module ``anatomy.norm_outside`` of the model.
        end: The module ``anatomy.end_outside`` of the model.
    """

    adapter_layer_names = (
        "aim_temporal_embedding",
        *(f"{TEMPORAL}{name}" for name in TEMPORAL_WEIGHTS),
        *(f"aim_{branch}_{layer}" for branch in ("spatial", "joint") for layer in ("down", "up")),
    )
    other_param_names = ("aim_settings",)

    def __init__(
        self,
        block: nn.Module,
        anatomy: Anatomy,
        frames: Frames,
        depth: float,
        norm: nn.Module | None = None,
        end: nn.Module | None = None,
    ) -> None:
        super().__init__(block)
        self.anatomy = anatomy
        self.frames = frames
        self.depth = depth
        self.aim_settings: dict[str, BranchSettings] = {}
        attention = None if anatomy.attention is None else block.get_submodule(anatomy.attention)
        self._block_input, self._mlp_argument = first_parameter(block), ""
        self._hidden: Widths = frozenset()
        self._mlp_input = PerThread()  # set while an MLP runs that calls its norm itself or consists of several parts
        self._handles = []
        self._outside = norm, end  # a tuple, so that torch does not take them for parts of this layer
        self._given, self._change = PerThread(), PerThread()  # tokens that the norm takes; change that the end adds
        if norm is not None:
            self._handles.append(norm.register_forward_pre_hook(self._note_given, with_kwargs=True))
        if end is not None:
            self._handles.append(end.register_forward_hook(self._add_change))
        if isinstance(attention, nn.MultiheadAttention):  # first, so that its output is detached before S is added
            self._handles += [
                attention.register_forward_pre_hook(_leave_the_fast_path, with_kwargs=True),
                attention.register_forward_hook(_forget_the_record, with_kwargs=True),
            ]
        if attention is not None:
            self._handles.append(attention.register_forward_hook(self._add_spatial))
        if anatomy.mlp is not None:
            mlp, end = block.get_submodule(anatomy.mlp), block.get_submodule(anatomy.mlp_end)
            self._mlp_argument = first_parameter(mlp)
            self._hidden = hidden_widths(mlp, anatomy.width)
            if anatomy.has_norm_inside_mlp:
                norm = block.get_submodule(anatomy.norm2)
                self._handles.append(norm.register_forward_hook(self._note_normed))
            elif end is not mlp:
                self._handles.append(mlp.register_forward_pre_hook(self._note_mlp_input, with_kwargs=True))
            self._handles.append(end.register_forward_hook(self._add_joint, with_kwargs=True))

    @property
    def adapters(self) -> Mapping[str, BranchSettings]:
        """The adapters of this block, including those with only a temporal embedding here."""
        return self.aim_settings

    def new_weights(self, config: AIMConfig, branches: list[str]) -> dict[str, nn.Module]:
        """Create the weights of each branch, and the temporal embedding if it is among the branches."""
        found: dict[str, nn.Module] = {}
        for branch in branches:
            if branch == "temporal_embedding":
                found["aim_temporal_embedding"] = new_embedding(config, self.anatomy.width)
            elif branch == "temporal":
                own = temporal_branch(config, self.anatomy).new_weights(config)
                found |= {f"{TEMPORAL}{name}": weight for name, weight in own.items()}
            else:
                found[f"aim_{branch}_down"], found[f"aim_{branch}_up"] = new_bottleneck(self.anatomy.width, config)
        return found

    def configure(self, adapter_name: str, config: AIMConfig) -> None:
        """Apply scale, drop path, activation checkpointing and the kind of the temporal branch."""
        self.aim_settings[adapter_name] = BranchSettings.of(config, self.anatomy, self.depth)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run temporal attention, then the block, on tokens ``(B*T, *N, D)``; the arguments are the block's own."""
        adapter = self.current
        if adapter is None:
            return self.base_layer(*args, **kwargs)
        tokens = given = first_argument(self._block_input, args, kwargs)
        if self._outside[0] is not None and self._changes_tokens(adapter):
            given = self._given.get()
            self._given.set(None)
            if given is None:
                raise RuntimeError(WITHOUT_NORM.format(self.anatomy.norm_outside))
        layout, remembers = self.anatomy.tokens, adapter in self.aim_temporal_up
        span = self.frames.of(layout.batch_first(tokens), layout.groups, remembers)
        settings = self.aim_settings[adapter]
        if not torch.is_grad_enabled() or settings.recompute == "nothing":
            output, change = self._run(adapter, span, given, *args, **kwargs)
        else:
            run = partial(self._run_unless_changed, adapter, settings, span)
            output, change = recomputing(settings.recompute, self._hidden, run, given, *args, **kwargs)
        if self._outside[1] is not None:  # set here, as the end is not recomputed with the block
            self._change.set(None if change is None else Change(change, self.frames.call, torch.is_grad_enabled()))
        self.frames.remember(first_tensor(output), span.frames)  # for the next block of a recomputed segment
        return output

    def _run_unless_changed(
        self, adapter: str, settings: BranchSettings, span: Span, *args: Any, **kwargs: Any
    ) -> tuple[Any, Tensor | None]:
        """Run in forward and again in backward, where the same adapter has to be active."""
        if self.current != adapter or self.aim_settings[adapter] is not settings:
            now = f"{self.current!r} is active" if self.current != adapter else "another one has been swapped in"
            raise RuntimeError(
                f"A block with recompute={settings.recompute!r} is run again in backward for the adapter {adapter!r}, "
                f"but now {now}. Call backward() before you switch, swap or disable adapters."
            )
        return self._run(adapter, span, *args, **kwargs)

    def _run(self, adapter: str, span: Span, given: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None]:
        """Run the adapters before the block, and the block; given are the tokens that the temporal branch takes.

        Returns:
            The output, and what the temporal branch has changed, if the end is to add that.
        """
        tokens = given
        if adapter in self.aim_temporal_embedding:
            tokens = embed(tokens, self.aim_temporal_embedding[adapter], span, self.anatomy.tokens)
        if adapter in self.aim_temporal_up:
            tokens = tokens + self._checkpointed(partial(self.over_time, adapter, span.frames, past=span.past), tokens)
        if tokens is given:
            return self.base_layer(*args, **kwargs), None
        taken = tokens if self._outside[0] is None else self._outside[0](tokens)
        self._given.set(None)
        args, kwargs = with_tokens(taken, self._block_input, args, kwargs)
        output = self.base_layer(*args, **kwargs)
        if not self.anatomy.skip_outside:
            return output, None
        if self._outside[1] is not None:
            return output, tokens - given
        return replace_first(output, first_tensor(output) + (tokens - given)), None  # the caller adds what was given

    def _changes_tokens(self, adapter: str) -> bool:
        return adapter in self.aim_temporal_embedding or adapter in self.aim_temporal_up

    def _note_given(self, norm: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        adapter = self.current
        if adapter is not None and self._changes_tokens(adapter):
            self._given.set(tokens_given(norm, args, kwargs))

    def _add_change(self, end: nn.Module, args: tuple, output: Any) -> Any:
        change = self._change.take()
        if self.current is None or change is None or change.call is not self.frames.call:
            return None
        if torch.is_grad_enabled() and not change.has_gradients:
            raise RuntimeError(WITHOUT_GRADIENTS.format(self.anatomy.end_outside))
        return replace_first(output, first_tensor(output) + change.tokens)

    def has(self, adapter_name: str, branch: str) -> bool:
        """Whether an adapter has one of the :data:`BRANCHES` here."""
        return adapter_name in getattr(self, f"aim_{branch}_up")

    def detach(self) -> None:
        """Remove the hooks from the block's parts."""
        for handle in self._handles:
            handle.remove()

    def over_time(self, adapter: str, frames: int, tokens: Tensor, past: Part | None = None) -> Tensor:
        """Compute the temporal branch of an adapter, in the shape of the tokens."""
        held = {name: getattr(self, f"{TEMPORAL}{name}") for name in TEMPORAL_WEIGHTS}
        weights = {name: container[adapter] for name, container in held.items() if adapter in container}
        layout = self.anatomy.tokens
        branch = self.aim_settings[adapter].temporal
        if branch.normalizes and self._outside[0] is not None:
            tokens = self._outside[0](tokens)
        mixed = branch(self.base_layer, weights, layout.batch_first(tokens), frames, past)
        return self._drop(layout.restored(mixed), adapter, layout)

    def _add_spatial(self, attention: nn.Module, args: tuple, output: Any) -> Any:
        adapter = self.current
        if adapter is None or adapter not in self.aim_spatial_up:
            return None
        a, axis = first_tensor(output), self.anatomy.attention_tokens.channels
        a = a + bottleneck(a, self.aim_spatial_down[adapter], self.aim_spatial_up[adapter], axis)
        return replace_first(output, a)

    def _note_mlp_input(self, mlp: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.current in self.aim_joint_up:
            self._mlp_input.set(first_argument(self._mlp_argument, args, kwargs))

    def _note_normed(self, norm: nn.Module, args: tuple, output: Any) -> None:
        if self.current in self.aim_joint_up:
            self._mlp_input.set(first_tensor(output))

    def _add_joint(self, mlp: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        adapter = self.current
        if adapter is None or adapter not in self.aim_joint_up:
            return None
        if self.anatomy.mlp == self.anatomy.mlp_end and not self.anatomy.has_norm_inside_mlp:
            h = first_argument(self._mlp_argument, args, kwargs)
        else:
            h = self._mlp_input.get()
            self._mlp_input.set(None)
        settings, layout = self.aim_settings[adapter], self.anatomy.mlp_tokens
        # The last output is only added, so torch stops recomputing before it, unless LayerScale follows.
        with cheap_from("pointwise"):
            joint = bottleneck(h, self.aim_joint_down[adapter], self.aim_joint_up[adapter], layout.channels)
            joint = settings.scale * joint
        return replace_first(output, first_tensor(output) + self._drop(joint, adapter, layout))

    def _drop(self, branch: Tensor, adapter: str, layout: Layout) -> Tensor:
        """Apply stochastic depth in training; in evaluation the rate is not read, so that torch.compile ignores it."""
        return drop_path(branch, self.aim_settings[adapter].drop_path, layout.batch) if self.training else branch

    def _checkpointed(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Recompute a function in backward if the block itself has gradient checkpointing switched on.

        timm checkpoints this whole layer, but transformers' blocks checkpoint only their own forward.
        """
        wanted = self.training and getattr(self.base_layer, "gradient_checkpointing", False)
        if wanted and torch.is_grad_enabled():
            return self.base_layer._gradient_checkpointing_func(function, tokens)
        return function(tokens)


def _leave_the_fast_path(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Keep torch's own attention off the fast path in the block's call, as :func:`multihead` does over time."""
    query = first_argument("query", args, kwargs)
    recorded = off_the_fast_path(attention, query)
    if recorded is query:
        return args, kwargs
    # torch recognizes self-attention by the identity of its arguments.
    args = tuple(recorded if value is query else value for value in args)
    return args, {name: recorded if value is query else value for name, value in kwargs.items()}


def _forget_the_record(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    """Detach the output again if the query requires gradients only to avoid the fast path."""
    query = first_argument("query", args, kwargs)
    recorded = query.is_leaf and query.requires_grad
    return replace_first(output, first_tensor(output).detach()) if recorded else None
