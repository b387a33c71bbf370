"""The tuner layers that AIM puts into a model: AIMLayer around a block, AIMHead in place of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from peft_aim.adapter import add_temporal_embedding, bottleneck, drop_path, from_time, to_time
from peft_aim.anatomy import Anatomy
from peft_aim.clips import Clips
from peft_aim.config import AIMConfig
from peft_aim.outputs import first_argument, first_parameter, first_tensor, replace_first, with_first_argument
from peft_aim.per_thread import PerThread

WHY_NO_MERGE = (
    "AIM adapters cannot be merged: they are nonlinear and the temporal one runs the attention once more, so no "
    "change of the backbone's weights does the same. Keep the adapter beside the backbone, or take it off by unload()."
)


class AIMTunerLayer(nn.Module, BaseTunerLayer):
    """What all of AIM's layers share: one active adapter, no merging, and the wrapped module's attributes.

    Args:
        base_layer: The module to wrap.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []

    @property
    def adapters(self) -> Mapping[str, Any]:
        """The adapters that this layer has, by name."""
        raise NotImplementedError

    @property
    def current(self) -> str | None:
        """Name of the adapter in use, None if there is none here or adapters are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.adapters), None)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter.

        Raises:
            ValueError: If there are several: which clip length and head should count?
        """
        if not isinstance(adapter_names, str) and len(adapter_names) > 1:
            raise ValueError(f"AIM runs one adapter at a time, got {list(adapter_names)}. Activate one of them.")
        super().set_adapter(adapter_names, inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see the message."""
        raise ValueError(WHY_NO_MERGE)

    def unmerge(self) -> None:
        """Refuse: nothing can have been merged."""
        raise ValueError(WHY_NO_MERGE)

    def detach(self) -> None:
        """Take off what the layer has put on other modules."""

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Give an adapter the device and dtype of the wrapped module, which has no ``weight`` that PEFT could ask."""
        like = next((p for p in self.base_layer.parameters() if p.is_floating_point()), None)
        if like is None or (device is None and like.device.type == "meta"):
            return
        for container in map(partial(getattr, self), self.adapter_layer_names):
            if adapter_name not in container:
                continue
            entry = container[adapter_name]
            parameters = [entry] if isinstance(entry, nn.Parameter) else list(entry.parameters())
            for parameter in parameters:
                if parameter.device.type != "meta":
                    parameter.data = parameter.data.to(device or like.device, like.dtype)

    def __getattr__(self, name: str) -> Any:
        """Parents read attributes of their blocks."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not there yet: a copy is being made
                raise
            return getattr(self.base_layer, name)

    def __repr__(self) -> str:
        return f"aim.{super().__repr__()}"


@dataclass(frozen=True)
class BranchSettings:
    """Settings of one adapter in one block that are no weights.

    Attributes:
        scale: Factor s on the joint adapter.
        drop_path: Rate of stochastic depth in this block.
    """

    scale: float
    drop_path: float


class AIMLayer(AIMTunerLayer):
    r"""A block of an image transformer with AIM's adapters (paper, equations 2 to 5).

    The block's own forward runs, with the adapters attached to its parts:

    .. math::
        x &\leftarrow x + \mathrm{DropPath}(T(\mathrm{attn}_T(\mathrm{norm}_1(x)))) \\
        x &\leftarrow x + a + S(a), \quad a = \mathrm{attn}(\mathrm{norm}_1(x)) \\
        x &\leftarrow x + \mathrm{mlp}(h) + \mathrm{DropPath}(s\,J(h)), \quad h = \mathrm{norm}_2(x)

    The first line comes before the block; :math:`\mathrm{attn}_T` is its attention along time. S and J are hooks on
    the block's attention and MLP, so what the block does to their results (LayerScale, windows) it does to S and J.

    Args:
        block: The block.
        anatomy: Its parts.
        clips: Tells how many frames the tokens at hand belong to.
        pre_norm: The norm between position embedding and this block, if there is one, for the first block: there the
            temporal embedding is added before it.
    """

    adapter_layer_names = (
        "aim_temporal_embedding",
        "aim_temporal_in_down",
        "aim_temporal_in_up",
        "aim_temporal_down",
        "aim_temporal_up",
        "aim_spatial_down",
        "aim_spatial_up",
        "aim_joint_down",
        "aim_joint_up",
    )
    other_param_names = ("aim_settings",)

    def __init__(self, block: nn.Module, anatomy: Anatomy, clips: Clips, pre_norm: nn.Module | None = None) -> None:
        super().__init__(block)
        self.anatomy = anatomy
        self.clips = clips
        self.embeds_before_norm = pre_norm is not None
        self._runs_along_time = PerThread()
        self.aim_temporal_embedding = nn.ParameterDict()
        for name in self.adapter_layer_names[1:]:  # flat containers: PEFT finds the adapter's name in a key only there
            setattr(self, name, nn.ModuleDict())
        self.aim_settings: dict[str, BranchSettings] = {}
        attention, mlp = block.get_submodule(anatomy.attention), block.get_submodule(anatomy.mlp)
        self._block_input, self._mlp_input = first_parameter(block), first_parameter(mlp)
        self._handles = [
            attention.register_forward_hook(self._add_spatial),
            mlp.register_forward_hook(self._add_joint, with_kwargs=True),
        ]
        if isinstance(attention, nn.MultiheadAttention):
            self._handles.append(attention.register_forward_pre_hook(_stay_off_the_fast_path))
        if pre_norm is not None:
            self._handles.append(pre_norm.register_forward_pre_hook(self._embed_before_norm))

    @property
    def adapters(self) -> Mapping[str, BranchSettings]:
        """The adapters that this block has, even if only an embedding."""
        return self.aim_settings

    def update_layer(self, adapter_name: str, config: AIMConfig, branches: Iterable[str], depth: float) -> None:
        """Add an adapter.

        Args:
            adapter_name: Its name.
            config: Its options.
            branches: Which of "temporal_embedding", "temporal_in", "temporal", "spatial", "joint" it has here.
            depth: Position of the block, 0 for the first to 1 for the last.
        """
        for branch in branches:
            if branch == "temporal_embedding":
                self.aim_temporal_embedding[adapter_name] = self._new_embedding(config)
            else:
                down, up = self._new_bottleneck(config)
                getattr(self, f"aim_{branch}_down")[adapter_name] = down
                getattr(self, f"aim_{branch}_up")[adapter_name] = up
        self.aim_settings[adapter_name] = BranchSettings(config.scale, config.drop_path * depth)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block on tokens ``(B*T, *N, D)``, after attention along time; the arguments are the block's own."""
        adapter = self.current
        if adapter is None:
            return self.base_layer(*args, **kwargs)
        tokens = first_argument(self._block_input, args, kwargs)
        frames = self.clips.frames(tokens)
        if adapter in self.aim_temporal_embedding and not self.embeds_before_norm:
            tokens = add_temporal_embedding(tokens, self.aim_temporal_embedding[adapter], frames)
        if adapter in self.aim_temporal_up:
            tokens = tokens + self._checkpointed(partial(self._attend_along_time, adapter, frames), tokens)
        args, kwargs = with_first_argument(tokens, self._block_input, args, kwargs)
        output = self.base_layer(*args, **kwargs)
        self.clips.remember(first_tensor(output), frames)  # a recomputed segment may go on to the next block
        return output

    def detach(self) -> None:
        """Take the hooks off the block's parts."""
        for handle in self._handles:
            handle.remove()

    def _attend_along_time(self, adapter: str, frames: int, tokens: Tensor) -> Tensor:
        """Compute the temporal branch, ``(B*T, *N, D) -> (B*T, *N, D)``."""
        block, anatomy = self.base_layer, self.anatomy
        h = to_time(block.get_submodule(anatomy.norm1)(tokens), frames)  # (B*N, T, D)
        if adapter in self.aim_temporal_in_up:
            h = h + bottleneck(h, self.aim_temporal_in_down[adapter], self.aim_temporal_in_up[adapter])
        self._runs_along_time.set(True)
        try:
            output = anatomy.attend(block.get_submodule(anatomy.attention), h)
        finally:
            self._runs_along_time.set(None)
        self.clips.note_time_maps(output)
        mixed = first_tensor(output)
        mixed = bottleneck(mixed, self.aim_temporal_down[adapter], self.aim_temporal_up[adapter])
        return drop_path(from_time(mixed, like=tokens), self.aim_settings[adapter].drop_path, self.training)

    def _add_spatial(self, attention: nn.Module, args: tuple, output: Any) -> Any:
        adapter = self.current
        if adapter is None or adapter not in self.aim_spatial_up or self._runs_along_time.get():
            return None
        a = first_tensor(output)
        a = a + bottleneck(a, self.aim_spatial_down[adapter], self.aim_spatial_up[adapter])
        return replace_first(output, a)

    def _add_joint(self, mlp: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        adapter = self.current
        if adapter is None or adapter not in self.aim_joint_up:
            return None
        settings = self.aim_settings[adapter]
        h = first_argument(self._mlp_input, args, kwargs)
        joint = settings.scale * bottleneck(h, self.aim_joint_down[adapter], self.aim_joint_up[adapter])
        return replace_first(output, first_tensor(output) + drop_path(joint, settings.drop_path, self.training))

    def _embed_before_norm(self, norm: nn.Module, args: tuple) -> tuple | None:
        adapter = self.current
        if adapter is None or adapter not in self.aim_temporal_embedding:
            return None
        embedding = self.aim_temporal_embedding[adapter]
        return (add_temporal_embedding(args[0], embedding, self.clips.frames(args[0])), *args[1:])

    def _checkpointed(self, function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Recompute in backward what runs before the block, if the block recomputes itself.

        timm checkpoints this layer with all that is in it, but transformers' blocks checkpoint their own forward.
        """
        wanted = self.training and getattr(self.base_layer, "gradient_checkpointing", False)
        if wanted and torch.is_grad_enabled():
            return self.base_layer._gradient_checkpointing_func(function, tokens)
        return function(tokens)

    def _new_embedding(self, config: AIMConfig) -> nn.Parameter:
        embedding = torch.zeros if config.init_weights else torch.randn
        return nn.Parameter(embedding(1, config.num_frames, self.anatomy.width))

    def _new_bottleneck(self, config: AIMConfig) -> tuple[nn.Linear, nn.Linear]:
        width = self.anatomy.width
        hidden = max(1, int(width * config.bottleneck_ratio))
        down, up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        if config.init_weights:
            initialize(down)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        return down, up


class AIMHead(AIMTunerLayer):
    """The model's classification head, replaced by the active adapter's own if it has one.

    Args:
        head: The model's head, or the identity in its place.
        features: Width of what it takes.
    """

    adapter_layer_names = ("aim_head",)

    def __init__(self, head: nn.Module, features: int) -> None:
        super().__init__(head)
        self.features = features
        self.aim_head = nn.ModuleDict()

    @property
    def adapters(self) -> Mapping[str, nn.Module]:
        """The adapters that have a head of their own."""
        return self.aim_head

    def update_layer(self, adapter_name: str, config: AIMConfig, like: Tensor) -> None:
        """Add a fresh head with the adapter's number of classes, on the device and in the dtype of a tensor."""
        head = nn.Linear(self.features, config.num_labels)
        if head.weight.device.type != "meta":
            head.to(like)
        initialize(head)
        self.aim_head[adapter_name] = head
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute class scores, ``(B*T, features) -> (B*T, classes)``."""
        adapter = self.current
        if adapter is None:
            return self.base_layer(features, *args, **kwargs)
        head = self.aim_head[adapter]
        return head(features.to(head.weight.dtype))


def _stay_off_the_fast_path(attention: nn.Module, args: tuple) -> tuple | None:
    """Make torch's MultiheadAttention round alike whether or not something in it is being trained.

    In evaluation mode it takes another kernel when no gradient is asked for. An adapter that is loaded for inference
    would then not give the very scores that it gave where it was trained.
    """
    recording = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not recording or any(isinstance(t, Tensor) and t.requires_grad for t in args):
        return None
    recorded = args[0].detach().requires_grad_()
    return tuple(recorded if t is args[0] else t for t in args)  # it tells self-attention by identity


def initialize(linear: nn.Linear) -> None:
    """Fill a new layer as the official code does: weights normal with deviation 0.02, no bias."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
