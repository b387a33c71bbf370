"""Checks of an AIMConfig, which also bring its values into one form."""

from __future__ import annotations

import math
import re
from typing import Any

from peft import PeftConfig

from peft_aim.recompute import SETTINGS

TEMPORAL = ("attention", "conv", "auto")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")  # as transformers has them


def check(config: PeftConfig) -> None:
    """Check the options one by one, then together.

    Raises:
        ValueError: If an option has the wrong type or is out of range, or if options contradict each other.
    """
    for part in (_check_numbers, _check_flags, _check_choices, _check_labels, _check_modules, _check_contradictions):
        part(config)


def _check_numbers(config: PeftConfig) -> None:
    if not _is_int(config.num_frames) or config.num_frames < 1:
        raise ValueError(
            f"num_frames={config.num_frames!r} is not a positive integer. Give the number of frames per clip, "
            "8 for example."
        )
    if not _is_number(config.bottleneck_ratio) or not 0 < config.bottleneck_ratio <= 1:
        raise ValueError(
            f"bottleneck_ratio={config.bottleneck_ratio!r} is not a number in (0, 1]. Give the width of the "
            "bottlenecks as a fraction of the token width; the paper uses 0.25."
        )
    if not _is_int(config.temporal_adapters) or config.temporal_adapters not in (1, 2):
        raise ValueError(
            f"temporal_adapters={config.temporal_adapters!r} is neither 1 (the default) nor 2 (another adapter "
            "before the temporal attention). To have none, set temporal=False."
        )
    if not _is_int(config.temporal_kernel) or config.temporal_kernel < 1 or config.temporal_kernel % 2 == 0:
        raise ValueError(
            f"temporal_kernel={config.temporal_kernel!r} is not a positive odd integer. Give the number of frames "
            "that the convolution covers, 3 for example."
        )
    if not _is_number(config.scale):
        raise ValueError(f"scale={config.scale!r} is not a finite number. The paper uses 0.5, and 1.0 for SSv2.")
    if not _is_number(config.drop_path) or not 0 <= config.drop_path < 1:
        raise ValueError(f"drop_path={config.drop_path!r} is not a number in [0, 1). The paper trains with 0.2.")
    if not _is_number(config.head_dropout) or not 0 <= config.head_dropout < 1:
        raise ValueError(f"head_dropout={config.head_dropout!r} is not a number in [0, 1). The paper uses 0.5.")


def _check_flags(config: PeftConfig) -> None:
    for name in ("causal", "spatial", "joint", "temporal_conv", "final_norm", "init_weights"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={getattr(config, name)!r} is not a bool. Give True or False.")


def _check_choices(config: PeftConfig) -> None:
    if config.temporal is True:
        config.temporal = "attention"
    if config.temporal is not False and config.temporal not in TEMPORAL:
        raise ValueError(
            f"temporal={config.temporal!r} is not a setting. Use one of {', '.join(map(repr, TEMPORAL))}, or False."
        )
    if config.temporal_embedding is True:
        config.temporal_embedding = "input"
    if config.temporal_embedding not in (False, "input", "blocks"):
        raise ValueError(
            f"temporal_embedding={config.temporal_embedding!r} is not a setting. Use 'input', 'blocks' or False."
        )
    if config.save_dtype not in (None, "float16", "bfloat16"):
        raise ValueError(f"save_dtype={config.save_dtype!r} is not supported. Use 'float16', 'bfloat16' or None.")
    if config.problem_type not in (None, *PROBLEM_TYPES):
        raise ValueError(
            f"problem_type={config.problem_type!r} is not a setting. Use one of "
            f"{', '.join(map(repr, PROBLEM_TYPES))}, or None."
        )
    if config.recompute not in SETTINGS:
        raise ValueError(
            f"recompute={config.recompute!r} is not a setting. Use one of {', '.join(map(repr, SETTINGS))}."
        )


def _check_labels(config: PeftConfig) -> None:
    if not isinstance(config.video, (dict, type(None))):
        raise ValueError(f"video={config.video!r} is not a dict. Leave it out: peft-aim train sets it.")
    if config.num_labels is not None and (not _is_int(config.num_labels) or config.num_labels < 1):
        raise ValueError(
            f"num_labels={config.num_labels!r} is not a positive integer. Give the number of classes, or None to "
            "keep the model's own head."
        )
    if config.id2label is None:
        return
    if not isinstance(config.id2label, dict) or not all(isinstance(name, str) for name in config.id2label.values()):
        raise ValueError(f"id2label={config.id2label!r} is not a dict from class index to name, {{0: 'push', ...}}.")
    try:  # JSON turns indices into strings
        config.id2label = {int(index): name for index, name in config.id2label.items()}
    except (TypeError, ValueError):
        raise ValueError(
            f"id2label has keys {list(config.id2label)} that are not class indices. Number the classes 0, 1, 2, ..."
        ) from None
    if sorted(config.id2label) != list(range(len(config.id2label))) or not config.id2label:
        raise ValueError(
            f"id2label has the indices {sorted(config.id2label)}. Number the classes 0, 1, 2, ... without gaps."
        )
    if config.num_labels not in (None, len(config.id2label)):
        raise ValueError(
            f"num_labels={config.num_labels} contradicts id2label, which names {len(config.id2label)} classes. "
            "Leave num_labels out, or name all classes."
        )
    config.num_labels = len(config.id2label)


def _check_modules(config: PeftConfig) -> None:
    for name in ("target_modules", "exclude_modules"):
        setattr(config, name, _patterns(name, getattr(config, name)))
    if isinstance(config.modules_to_save, (tuple, set)):
        config.modules_to_save = sorted(config.modules_to_save)
    if config.modules_to_save is not None and not _is_list_of(str, config.modules_to_save):
        raise ValueError(
            f"modules_to_save={config.modules_to_save!r} is not a list of module names. Give ['norm'], for example."
        )
    config.layers_to_transform = _indices("layers_to_transform", config.layers_to_transform)
    if config.temporal_layers not in ("even", "odd"):
        config.temporal_layers = _indices("temporal_layers", config.temporal_layers, "'even', 'odd', ")
    for name in ("norm1_module", "attention_module", "norm2_module", "mlp_module"):
        value = getattr(config, name)
        if value is not None and (not isinstance(value, str) or not value):
            raise ValueError(f"{name}={value!r} is not the name of a module inside a block, 'attn' for example.")


def _check_contradictions(config: PeftConfig) -> None:
    if config.task_type is not None:
        raise ValueError(
            f"task_type={config.task_type!r} selects a PEFT wrapper for text models, which takes no clips. Leave it "
            "out."
        )
    _check_temporal(config)
    if config.drop_path and not (config.temporal or config.joint):
        raise ValueError(
            f"drop_path={config.drop_path} has no effect: it acts on the temporal and the joint branch, and both "
            "are off. Set temporal='attention' or joint=True, or leave drop_path at 0."
        )
    if config.recompute != "nothing" and not config.has_block_adapters:
        raise ValueError(
            f"recompute={config.recompute!r} has no effect: it acts on blocks with adapters, and spatial, temporal "
            "and joint are all False. Set one of them to True, or leave recompute out."
        )
    if config.head_dropout and not config.num_labels:
        raise ValueError(
            f"head_dropout={config.head_dropout} has no effect: it acts before the adapter's own head, and the "
            "adapter has none. Give num_labels or id2label, or leave head_dropout at 0."
        )
    if config.problem_type and not config.num_labels:
        raise ValueError(
            f"problem_type={config.problem_type!r} has no effect: it is about the adapter's own head, and the adapter "
            "has none. Give num_labels or id2label, or set model.config.problem_type for the model's head."
        )
    if not (config.has_block_adapters or config.temporal_embedding or config.num_labels):
        raise ValueError(
            "spatial, temporal, joint and temporal_embedding are all False and num_labels is not given, so there "
            "is nothing to train. Set one of them to True, or give num_labels to train only a linear head."
        )


def _check_temporal(config: PeftConfig) -> None:
    """Check that options of the temporal branch fit its kind."""
    unused = {"temporal_adapters": 1, "temporal_conv": False, "temporal_embedding": "input"}
    for name, without in unused.items():
        if getattr(config, name) not in (without, False) and config.temporal not in ("attention", "auto"):
            raise ValueError(
                f"{name}={getattr(config, name)!r} contradicts temporal={config.temporal!r}: it acts in the adapter "
                f"after temporal attention. Set temporal='attention', or {name}={without!r}."
            )
    if config.temporal_kernel != 3 and not (config.temporal_conv or config.temporal in ("conv", "auto")):
        raise ValueError(
            f"temporal_kernel={config.temporal_kernel} has no effect: there is no convolution over time. Set "
            "temporal='conv' or temporal_conv=True, or leave temporal_kernel out."
        )
    if config.causal and not config.temporal:
        raise ValueError(
            "causal=True contradicts temporal=False: without a temporal branch, no frame gets information from "
            "others. Set temporal='attention', or leave causal out."
        )
    if config.temporal_layers is not None and not config.temporal:
        raise ValueError(
            f"temporal_layers={config.temporal_layers!r} contradicts temporal=False. Set temporal='attention', or "
            "leave temporal_layers out."
        )


def _indices(name: str, value: Any, others: str = "") -> int | list[int] | None:
    """Return an index of a block, or a sorted list of indices."""
    if value is None or (_is_int(value) and value >= 0):
        return value
    indices = list(value) if isinstance(value, (list, tuple, set)) else []
    if not indices or not all(_is_int(index) and index >= 0 for index in indices):
        raise ValueError(
            f"{name}={value!r} is not {others}an index of a block or a list of such indices. Count blocks from 0, in "
            "the order in which they run."
        )
    return sorted(indices)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and item for item in value) and bool(value)


def _patterns(name: str, value: Any) -> str | set[str] | None:
    """Return module names in one of PEFT's two forms: a regular expression, or a set of suffixes."""
    if value is None:
        return None
    if isinstance(value, str) and value:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(
                f"{name}={value!r} is not a valid regular expression: {error}. To match a name literally, give a "
                f"list: [{value!r}]."
            ) from None
        return value
    if isinstance(value, (list, tuple, set)) and _is_list_of(str, list(value)):
        return set(value)
    raise ValueError(
        f"{name}={value!r} is neither a regular expression nor a list of names. Give names of blocks as in "
        "model.named_modules(), ['blocks.0', 'blocks.1'] for example, or None."
    )
