"""AIMModel: adds AIM's adapters to a backbone, and removes them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_aim.backbone import PartNames, check_gradients_pass, inspect_backbone
from peft_aim.clips import Clips, features
from peft_aim.config import PROBLEM_TYPES, AIMConfig
from peft_aim.layers import (
    WHY_NO_MERGE,
    WHY_NO_SUM,
    AIMEmbedding,
    AIMHead,
    AIMLayer,
    AIMNorm,
    AIMTunerLayer,
    check_effect,
    saved_name,
)
from peft_aim.saving import (
    adapter_weights,
    check_file,
    check_shapes,
    compare_backbone,
    fingerprint_to_save,
    in_precision,
    own_shapes,
    select_weights,
    shapes_of,
    unwrapped,
)
from peft_aim.summary import summary
from peft_aim.targets import (
    adapted_blocks,
    as_regex,
    check_adapter_name,
    check_free,
    check_part_names,
    not_decayed,
    put_into,
    resolve_targets,
    whole_classes,
)
from peft_aim.tracing import computing_weight


class AIMModel(BaseTuner):
    """A frozen image transformer with AIM's adapters, which takes clips (arXiv 2302.03024).

    Create it with ``peft.get_peft_model(backbone, AIMConfig(...))``. Everything else is PEFT's own interface:
    ``add_adapter``, ``set_adapter``, ``disable_adapter``, ``save_pretrained``, ``unload`` ...

    In evaluation mode, ``adapter_names=[...]`` runs each clip with its own adapter, or with none ("__base__"). The
    clips of one adapter are one call, so they have its scores bit for bit. Scores ``(B, classes)`` have the columns of
    the adapter with the most classes; the columns that others lack are minus infinity.

    Shape:
        Clips ``(B, T, C, H, W)`` or images ``(B, C, H, W)`` -> the backbone's output, one result per clip.

    Raises:
        ValueError: If the backbone has no block that can be adapted, with what was observed.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from torchvision.models import VisionTransformer
        >>> backbone = VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
        >>> model = get_peft_model(backbone, AIMConfig(num_frames=4, num_labels=5))
        >>> model(torch.randn(2, 4, 3, 32, 32)).shape
        torch.Size([2, 5])
        >>> model.add_adapter("other", AIMConfig(num_frames=8, num_labels=3))
        >>> scores = model.eval()(torch.randn(2, 4, 3, 32, 32), adapter_names=["default", "other"])
        >>> scores.isinf().sum(1).tolist()
        [0, 2]
    """

    prefix = "aim_"
    tuner_layer_cls = AIMTunerLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's; empty, blocks are found by structure)
    features = features  # model.features(clips)

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        check_free(model, adapter_name)
        configs = getattr(model, "peft_config", None)
        before = dict(configs or {})
        try:
            super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except Exception:
            if configs is not None:  # other adapters still use this dict
                configs.clear()
                configs.update(before)
            raise

    @property
    def _no_split_modules(self) -> set[str]:
        """The classes that the FSDP policies of accelerate and PEFT shard as a whole, and device maps do not split."""
        return whole_classes(self.model)

    def no_weight_decay(self) -> set[str]:
        """Return the names, in a PeftModel, of the parameters that timm's optimizers are not to decay."""
        return {f"base_model.model.{name}" for name in not_decayed(self.model)}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the model; if that fails, leave the model unchanged.

        For an adapter that is being loaded, check its file before the weights are read, and compare the backbone with
        the one that the adapter was trained on.

        Raises:
            ValueError: If an adapter cannot have this name, if the file does not contain exactly its weights, or if
                parts of the adapter have no effect on the output.
        """
        config = self.peft_config[adapter_name]
        try:
            check_adapter_name(adapter_name)
            config.fetch_weights()
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            if config.folder is not None:
                check_file(self.model, adapter_name, config.folder)
            check_effect(self.model, self.model.aim_clips.inspection, adapter_name, not config.inference_mode)
            compare_backbone(self.model, adapter_name, config.backbone_fingerprint)
        except BaseException:  # also if a download is interrupted
            self._remove_adapter(adapter_name)
            raise

    def _prepare_adapter_config(self, peft_config: AIMConfig, model_config: dict) -> AIMConfig:
        """Resolve which modules get which adapters, from the structure of the model and the options."""
        names = {field.name: getattr(peft_config, f"{field.name}_module") for field in fields(PartNames)}
        found = self._clips(PartNames(**names)).inspection
        peft_config.of_model = {}
        resolve_targets(self.model, found, peft_config)
        if peft_config.has_block_adapters and not peft_config.inference_mode:
            check_gradients_pass(self.model, peft_config.branches)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: AIMConfig, key: str) -> Any:
        if key in peft_config.branches or peft_config.target_modules is None:
            return key in peft_config.branches
        matched = check_target_module_exists(peft_config, key)
        return False if matched else matched  # not always False: PEFT counts excluded modules

    def _create_and_replace(
        self,
        peft_config: AIMConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if current_key not in peft_config.branches:  # PEFT takes the names from a state dict instead
            raise ValueError(
                f"The state dict has weights for {current_key!r}, but this config adds none there. Leave out "
                "target_modules, exclude_modules and layers_to_transform, or pass those of the saved adapter."
            )
        if not isinstance(target, AIMTunerLayer):
            layer = self._new_layer(target, current_key)
            layer.set_adapter(self.active_adapters)
            put_into(parent, target_name, layer)
            target = layer
        if isinstance(target, AIMLayer):  # how it attends to earlier frames is found when the first adapter needs it
            target.anatomy = self.model.aim_clips.inspection.modules[current_key]
        like = computing_weight(self.model)
        target.update_layer(adapter_name, peft_config, peft_config.branches[current_key], like)

    def _new_layer(self, target: nn.Module, name: str) -> AIMTunerLayer:
        clips: Clips = self.model.aim_clips
        found = clips.inspection
        if name == found.head:
            return AIMHead(target, found.features, clips.frames)
        if name in found.final_norms:
            return AIMNorm(target)
        for block, pre_norm in found.entries.items():
            if name == pre_norm:
                return AIMEmbedding(target, found.modules[block].width, found.entry_tokens[name], clips.frames)
        anatomy = found.modules[name]
        outside = (anatomy.norm_outside, anatomy.end_outside)
        outside = (None if other is None else self.model.get_submodule(other) for other in outside)
        layer = AIMLayer(target, anatomy, clips.frames, found.depth(name), *outside)
        clips.layers.append(layer)
        return layer

    def _clips(self, names: PartNames) -> Clips:
        """Return the hooks around the backbone; the first adapter creates them, later ones share them."""
        clips = getattr(self.model, "aim_clips", None)
        if clips is None:
            clips = self.model.aim_clips = Clips(inspect_backbone(self.model, names))
            clips.attach(self.model)
        check_part_names(clips.inspection, names, len(self.peft_config) == 1)
        return clips

    def print_adapted_blocks(self, adapter_name: str | None = None) -> None:
        """Print which blocks have which adapters, how information passes between frames, and which blocks are skipped.

        Args:
            adapter_name: The adapter; the active one by default.

        Example:
            >>> import timm
            >>> from peft import get_peft_model
            >>> backbone = timm.create_model("vit_tiny_patch16_224", depth=2)
            >>> config = AIMConfig(spatial=False, temporal_embedding=False)
            >>> get_peft_model(backbone, config).print_adapted_blocks()  # doctest: +ELLIPSIS
            VisionTransformer with the adapter 'default': 2 of 2 blocks with attention are adapted
            <BLANKLINE>
            block                     parts                  width  bottleneck  adapters         temporal branch
            blocks.0 to blocks.1 (2)  norm1 attn; norm2 mlp  192    48          temporal, joint  its own forward ...
            <BLANKLINE>
            parameters  count  each    total
            temporal    2      18,672  37,344
            joint       2      18,672  37,344
            all                        74,688
        """
        name = adapter_name or self.active_adapters[0]
        if name not in self.peft_config:
            raise ValueError(f"This model has no adapter {name!r}. Use one of {', '.join(self.peft_config)}.")
        print(summary(self.model, name))

    def _check_merge_allowed(self) -> None:
        raise ValueError(WHY_NO_MERGE)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError: AIM adapters cannot be added up."""
        raise ValueError(WHY_NO_SUM)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        """Restore the backbone and return it; PEFT's own loop would leave wrappers inside blocks."""
        if merge:
            self._check_merge_allowed()
        self._unwrap(lambda module: True)
        if hasattr(self.model, "aim_clips"):
            self.model.aim_clips.detach(self.model)
            del self.model.aim_clips
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        return self.model

    def _unwrap(self, wanted: Callable[[nn.Module], bool]) -> None:
        """Replace wrappers by the modules that they wrap, inner ones first."""
        for kind, wrapped in ((ModulesToSaveWrapper, "original_module"), (AIMTunerLayer, "base_layer")):
            for name, module in reversed(list(self.model.named_modules())):
                if isinstance(module, kind) and wanted(module):
                    if isinstance(module, AIMTunerLayer):
                        module.detach()
                    parent, _, last = name.rpartition(".")
                    put_into(self.model.get_submodule(parent), last, getattr(module, wrapped))

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it is active, the first of the others becomes active in all layers.

        Raises:
            ValueError: If there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        del self.peft_config[adapter_name]
        if not self.peft_config:
            self.active_adapter = []
        elif adapter_name in self.active_adapters:
            active = next(iter(self.peft_config))
            warnings.warn(
                f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to {active}.",
                stacklevel=3,
            )
            self.set_adapter(active)
        self._delete_weights(adapter_name)

    def _delete_weights(self, adapter_name: str) -> None:
        """Delete an inactive adapter in all layers; PEFT's loop skips those with "aim_" in their names."""
        for module in self.model.modules():
            if isinstance(module, AIMTunerLayer):
                module.delete_adapter(adapter_name)
            elif isinstance(module, ModulesToSaveWrapper):
                module.delete_adapter(adapter_name, new_active_adapters=self.active_adapters)

    def _remove_adapter(self, adapter_name: str) -> None:
        """Undo a failed injection."""
        self.peft_config.pop(adapter_name, None)
        if not self.peft_config:
            self._unload_and_optionally_merge(merge=False)
            return
        self._delete_weights(adapter_name)
        self._unwrap(lambda module: not module._get_available_adapters())

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: AIMConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        *args: Any,
        **kw: Any,
    ) -> dict[str, Tensor]:
        """Select an adapter's weights for saving, and record in its config how and on what they were trained."""
        weights = select_weights(model, adapter_name, state_dict)
        config.of_model = {}
        if config.has_found_targets:  # perhaps in another model that the config was used for later
            config.of_model["target_modules"] = as_regex(adapted_blocks(model, adapter_name))
        if not config.inference_mode:
            learned = {
                "backbone_fingerprint": fingerprint_to_save(model, adapter_name, state_dict),
                "problem_type": _of_labels(model, config),
            }
            config.of_model |= {option: value for option, value in learned.items() if value is not None}
        return weights if config.save_dtype is None else in_precision(weights, config.save_dtype)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Translate a weight's name in the model into that in files; PEFT also uses this to load."""
        return saved_name(unwrapped(super()._remove_adapter_name_from_key(key, adapter_name)))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: AIMConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Translate saved names into the model's, after checking that they are exactly those of the adapter."""
        expected = shapes_of(adapter_weights(model, adapter_name))
        found = {name.replace(f".modules_to_save.{adapter_name}", ""): t for name, t in state_dict.items()}
        own = own_shapes(model, shapes_of(found), expected)
        check_shapes(expected, own, f"The state dict for the adapter {adapter_name!r}")
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)


def _of_labels(model: nn.Module, config: AIMConfig) -> str | None:
    """Return what labels mean for an adapter's own head, perhaps by the model's config, which other models lack."""
    found = config.problem_type or getattr(getattr(model, "config", None), "problem_type", None)
    return found if config.num_labels and found in PROBLEM_TYPES else None
