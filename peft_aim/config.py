"""AIMConfig: every option of the method, validated once, when the config is made."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig

from peft_aim.card import write_card
from peft_aim.peft_type import add_peft_type
from peft_aim.recompute import SETTINGS


@dataclass
class AIMConfig(PeftConfig):
    r"""Configuration of AIM, "Adapting Image Models for Efficient Video Action Recognition" (arXiv 2302.03024).

    Every block of a frozen image transformer gets three bottlenecks,
    :math:`\mathrm{Adapter}(x) = W_{up}\,\mathrm{GELU}(W_{down}\,x)` (section 3 of the paper):
    *temporal*, behind the block's own attention run along time; *spatial*, behind its attention; *joint*, beside
    its MLP. All fields can be given by keyword; PEFT's own (``inference_mode``, ``revision`` ...) are inherited.

    Args:
        num_frames: Number of frames T that the temporal embedding is made for. Clips of any length can be run; the
            embedding is then interpolated.
        bottleneck_ratio: Width of a bottleneck as a fraction of the tokens' width D.
        spatial: Whether blocks have the spatial adapter.
        temporal: Whether blocks have the temporal adapter, and attend along time at all.
        joint: Whether blocks have the joint adapter.
        temporal_adapters: 1, or 2 for another bottleneck with a skip before the temporal attention (the paper's
            setting for Something-Something v2).
        scale: Factor s on the joint adapter.
        drop_path: Rate of stochastic depth at the last block, on the temporal and the joint branch; it grows
            linearly from 0 at the first block. The paper trains with 0.2.
        head_dropout: Rate of dropout before the adapter's own head, alike in all frames of a clip. The paper trains
            with 0.5.
        final_norm: Whether the norms behind the last block, if there are any, are trained and saved with the adapter,
            as in the paper.
        recompute: What blocks compute again in backward in place of keeping it: "nothing"; "pointwise", norms and
            activations (a few percent of memory, nothing where attention has windows); "mlp", also the hidden layer of
            the MLP, attention over few tokens and the temporal adapter's second layer; "block", all but their input.
            Scores and gradients stay the same. A graph of "pointwise" or "mlp" can be run backward once only
            (no ``retain_graph``), and of blocks that change the result of a layer in place, torch says in backward
            that it "has been mutated": take "block" then.
        temporal_embedding: Whether a learned embedding (1, T, D), zero at the start, is added to the tokens.
        num_labels: Number of classes of this adapter's own, fresh classification head. None keeps the model's head.
        id2label: Names of the classes by index; stored with the adapter. Implies ``num_labels``.
        target_modules: Which blocks get adapters: a list of name suffixes, or a regular expression. None finds all
            blocks by their structure; it is then filled with what was found.
        exclude_modules: Blocks to leave alone, in the same form.
        layers_to_transform: Indices, in the order in which the blocks run, of the blocks to adapt.
        norm1_module: Name, inside a block, of the norm before attention. Only for blocks not understood by structure,
            as are the next three.
        attention_module: Name, inside a block, of the attention.
        norm2_module: Name, inside a block, of the norm before the MLP.
        mlp_module: Name, inside a block, of the MLP.
        modules_to_save: Further modules to train and save with the adapter.
        save_dtype: "float16" or "bfloat16" saves the adapter rounded to half precision, half the file; None as it is.
            It is loaded in the precision that it was trained in. Checkpoints of a Trainer are saved so, too: to go on
            from them exactly, set it in ``model.peft_config`` when training is over.
        init_weights: False draws the up-projections and the temporal embedding at random, so that the fresh adapter
            is not an identity. For tests.
        backbone_fingerprint: Filled when the adapter is saved: the frozen weights it was trained on.
        video: What :mod:`peft_aim.video` notes with an adapter that it has trained: how to make clips of a video file,
            how it was trained, and how well it did.

    Raises:
        ValueError: If a value has the wrong type or range, or settings contradict each other.

    Example:
        >>> AIMConfig(num_frames=8, id2label={0: "push", 1: "pull"}).num_labels
        2
        >>> AIMConfig(num_frames=0)
        Traceback (most recent call last):
        ...
        ValueError: num_frames=0 is not a positive integer. Give the number of frames per clip, 8 for example.
    """

    num_frames: int = 8
    bottleneck_ratio: float = 0.25
    spatial: bool = True
    temporal: bool = True
    joint: bool = True
    temporal_adapters: int = 1
    scale: float = 0.5
    drop_path: float = 0.0
    head_dropout: float = 0.0
    final_norm: bool = False
    recompute: str = "nothing"
    temporal_embedding: bool = True
    num_labels: int | None = None
    id2label: dict[int, str] | None = None
    target_modules: str | list[str] | set[str] | None = None
    exclude_modules: str | list[str] | set[str] | None = None
    layers_to_transform: int | list[int] | None = None
    norm1_module: str | None = None
    attention_module: str | None = None
    norm2_module: str | None = None
    mlp_module: str | None = None
    modules_to_save: list[str] | None = None
    save_dtype: str | None = None
    init_weights: bool = True
    backbone_fingerprint: str | None = None
    video: dict[str, Any] | None = None

    # No options, so neither compared nor saved: the folder it was loaded from, whether weights are to follow from
    # there, what each module of the model at hand gets, the targets that were found in that rather than given, and
    # the options that differ in the model that an adapter is being saved from.
    folder: ClassVar[str | None] = None
    awaits_weights: ClassVar[bool] = False
    branches: ClassVar[dict[str, list[str]]] = {}
    found_targets: ClassVar[str | None] = None
    of_model: ClassVar[dict[str, Any]] = {}

    def __new__(cls, *args: Any, **kwargs: Any) -> AIMConfig:
        """Refuse unknown options here: PEFT would drop a TypeError of ``__init__`` and go on without them."""
        unknown = sorted(set(kwargs) - {option.name for option in fields(cls)})
        if unknown:
            raise ValueError(
                f"AIMConfig has no option {', '.join(unknown)}. If it comes from a saved adapter, that was made by "
                "a newer version: pip install -U peft-aim peft. Otherwise see help(AIMConfig) for the options."
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type()
        self._check_numbers()
        self._check_flags()
        self._check_choices()
        self._check_labels()
        self._check_modules()
        self._check_contradictions()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Load a saved configuration, and remember its folder: the weights beside it are checked before they are used.

        To start a fresh adapter from saved settings instead, pass ``dataclasses.replace(config,
        backbone_fingerprint=None)``.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        config.folder = os.path.join(pretrained_model_name_or_path, subfolder or "")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return all options, with what is particular to the model that the adapter is being saved from."""
        return {**super().to_dict(), **self.of_model}

    @property
    def has_found_targets(self) -> bool:
        """Whether ``target_modules`` was not given, but filled with the blocks that were found in a model."""
        return self.found_targets is not None and self.target_modules == self.found_targets

    def search_anew(self) -> AIMConfig:
        """Forget the targets that were found in a model, before the config is used for another one."""
        if self.has_found_targets:
            self.target_modules = None
        return self

    def note_targets(self, found: str) -> None:
        """Fill ``target_modules``, unless it was given, with the blocks that were found in a model."""
        if self.target_modules is None:
            self.target_modules = self.found_targets = found

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, and a model card unless the folder has one that somebody has written."""
        super().save_pretrained(save_directory, **kwargs)
        write_card(self.to_dict(), Path(save_directory))

    @property
    def has_block_adapters(self) -> bool:
        """Whether blocks get any adapter, and not only the embedding or a head are trained."""
        return self.spatial or self.temporal or self.joint

    def _check_numbers(self) -> None:
        if not _is_int(self.num_frames) or self.num_frames < 1:
            raise ValueError(
                f"num_frames={self.num_frames!r} is not a positive integer. Give the number of frames per clip, "
                "8 for example."
            )
        if not _is_number(self.bottleneck_ratio) or not 0 < self.bottleneck_ratio <= 1:
            raise ValueError(
                f"bottleneck_ratio={self.bottleneck_ratio!r} is not in (0, 1]: it is the bottleneck's width as a "
                "fraction of the tokens' width. The paper uses 0.25."
            )
        if not _is_int(self.temporal_adapters) or self.temporal_adapters not in (1, 2):
            raise ValueError(
                f"temporal_adapters={self.temporal_adapters!r} is neither 1 (the default) nor 2 (one more adapter "
                "before the temporal attention). To have none, set temporal=False."
            )
        if not _is_number(self.scale):
            raise ValueError(f"scale={self.scale!r} is not a finite number. The paper uses 0.5, and 1.0 for SSv2.")
        if not _is_number(self.drop_path) or not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path={self.drop_path!r} is not in [0, 1). The paper trains with 0.2.")
        if not _is_number(self.head_dropout) or not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout={self.head_dropout!r} is not in [0, 1). The paper trains with 0.5.")

    def _check_flags(self) -> None:
        for name in ("spatial", "temporal", "joint", "temporal_embedding", "final_norm", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r} is not True or False.")

    def _check_choices(self) -> None:
        if self.save_dtype not in (None, "float16", "bfloat16"):
            raise ValueError(f"save_dtype={self.save_dtype!r} is neither 'float16' nor 'bfloat16', nor None.")
        if self.recompute not in SETTINGS:
            raise ValueError(f"recompute={self.recompute!r} is not one of {', '.join(map(repr, SETTINGS))}.")

    def _check_labels(self) -> None:
        if not isinstance(self.video, (dict, type(None))):
            raise ValueError(f"video={self.video!r} is not a dict. It is filled by peft-aim train; leave it out.")
        if self.num_labels is not None and (not _is_int(self.num_labels) or self.num_labels < 1):
            raise ValueError(
                f"num_labels={self.num_labels!r} is not a positive integer. Give the number of classes, or None to "
                "keep the model's own head."
            )
        if self.id2label is None:
            return
        if not isinstance(self.id2label, dict) or not all(isinstance(name, str) for name in self.id2label.values()):
            raise ValueError(f"id2label={self.id2label!r} is not a dict from class index to name, {{0: 'push', ...}}.")
        try:  # JSON has turned the indices into strings
            self.id2label = {int(index): name for index, name in self.id2label.items()}
        except (TypeError, ValueError):
            raise ValueError(f"id2label has keys {list(self.id2label)} that are not class indices.") from None
        if sorted(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise ValueError(
                f"id2label has the indices {sorted(self.id2label)}. Number the classes 0, 1, 2, ... without gaps."
            )
        if self.num_labels not in (None, len(self.id2label)):
            raise ValueError(
                f"num_labels={self.num_labels} contradicts id2label, which names {len(self.id2label)} classes. "
                "Leave num_labels out, or name all classes."
            )
        self.num_labels = len(self.id2label)

    def _check_modules(self) -> None:
        for name in ("target_modules", "exclude_modules"):
            setattr(self, name, _patterns(name, getattr(self, name)))
        if isinstance(self.modules_to_save, (tuple, set)):
            self.modules_to_save = sorted(self.modules_to_save)
        if self.modules_to_save is not None and not _is_list_of(str, self.modules_to_save):
            raise ValueError(f"modules_to_save={self.modules_to_save!r} is not a list of module names, ['norm'] say.")
        layers = self.layers_to_transform
        if layers is not None:
            indices = [layers] if _is_int(layers) else list(layers) if isinstance(layers, (list, tuple, set)) else None
            if not indices or not all(_is_int(index) and index >= 0 for index in indices):
                raise ValueError(
                    f"layers_to_transform={layers!r} is not an index, or a list of indices, of blocks: 0 is the first "
                    "block to run."
                )
            self.layers_to_transform = layers if _is_int(layers) else sorted(indices)
        for name in ("norm1_module", "attention_module", "norm2_module", "mlp_module"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise ValueError(f"{name}={value!r} is not the name of a module inside a block, 'attn' for example.")

    def _check_contradictions(self) -> None:
        if self.task_type is not None:
            raise ValueError(
                f"task_type={self.task_type!r} selects one of PEFT's wrappers for text, which don't take clips. "
                "Leave it out."
            )
        if self.temporal_adapters == 2 and not self.temporal:
            raise ValueError("temporal_adapters=2 contradicts temporal=False. Set temporal=True, or leave it at 1.")
        if self.drop_path and not (self.temporal or self.joint):
            raise ValueError(
                f"drop_path={self.drop_path} has nothing to drop: it acts on the temporal and the joint branch, and "
                "both are off. Switch one on, or set drop_path=0."
            )
        if self.recompute != "nothing" and not self.has_block_adapters:
            raise ValueError(
                f"recompute={self.recompute!r} acts on blocks with adapters, and spatial, temporal and joint are all "
                "False. Switch one on, or leave recompute out."
            )
        if self.head_dropout and not self.num_labels:
            raise ValueError(
                f"head_dropout={self.head_dropout} acts before the adapter's own head, and it has none. Give "
                "num_labels or id2label, or set head_dropout=0."
            )
        if not (self.has_block_adapters or self.temporal_embedding or self.num_labels):
            raise ValueError(
                "Nothing of AIM is left to train: spatial, temporal, joint and temporal_embedding are all False, and "
                "num_labels is not given. Switch one on; for a linear head alone, give num_labels."
            )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and item for item in value) and bool(value)


def _patterns(name: str, value: Any) -> str | set[str] | None:
    """Names of modules in one of the two forms that PEFT knows: a regular expression, or a set of suffixes."""
    if value is None:
        return None
    if isinstance(value, str) and value:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(
                f"{name}={value!r} is no regular expression: {error}. For names as they are, give a list: [{value!r}]."
            ) from None
        return value
    if isinstance(value, (list, tuple, set)) and _is_list_of(str, list(value)):
        return set(value)
    raise ValueError(
        f"{name}={value!r} is neither a regular expression nor a list of names. Name blocks as they appear in "
        "model.named_modules(), ['blocks.0', 'blocks.1'] for example, or leave it None."
    )
