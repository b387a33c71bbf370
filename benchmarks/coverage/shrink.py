"""Smaller options for image transformers, with the same structure.

One rule covers the constructors of timm and torchvision and the configs of transformers and open_clip: :func:`smaller`
reduces depths, widths, heads and windows, which it recognizes by the names of options.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping

import transformers as tf

WIDEST = 384  # channels of a small model


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


DEPTHS = words("""
depth depths layers stages num_layers num_hidden_layers n_layer serial_depths parallel_depth transformer_depths
transformer_depth num_self_attends_per_block encoder_layers decoder_layers d blocks_per_stage block_layers
vision_layers
""")
WIDTHS = words("""
embed_dim embed_dims dims base_dims hidden_size hidden_sizes width n_embd d_model hidden_dim embed_dim_per_stage
block_channels
""")
HEADS = words("num_heads heads num_heads_outer num_attention_heads n_head num_attention_heads_per_stage")
SHARED_HEADS = words("num_kv_heads num_key_value_heads")  # grouped-query attention
WITH_WIDTH = words("""
intermediate_size rel_pos_dim out_features inner_dim stem_hidden_dim stem_width stem_channels init_channels mlp_dim
decoder_hidden_size
""")
WINDOWS = words("window_size window_sizes wss partition_size")
SIZES = words("img_size image_size")

DERIVED = words("""
self id2label label2id num_labels transformers_version architectures dtype out_features out_indices _out_features
_out_indices stage_names problem_type
""")


def smaller(options: Mapping[str, object], level: int = 2) -> dict[str, object]:
    """Return the options to change for a small transformer, with their new values.

    Args:
        options: Options of a constructor or a config, by name. Nested configs are reduced as well.
        level: 2 reduces everything, 1 keeps the widths, 0 changes nothing.
    """
    if level == 0:
        return {}
    changes: dict[str, object] = {}
    depths = {name: value for name, value in options.items() if name in DEPTHS and _counts(value)}
    for name, value in depths.items():
        changes[name] = each(value, lambda depth: min(depth, 2))
    for name, value in options.items():
        if name not in changes and (new := _per_block(name, value, depths)) is not None:
            changes[name] = new
        if name in WINDOWS and value is not None and any(flat(value)):
            least = min(window for window in flat(value) if window)  # 0 means no windows
            changes[name] = each(value, lambda window, least=least: round(window * 4 / least))
        if name == "vocab_size":
            changes[name] = min(value, 1000)
        if name.endswith(("token_id", "token_index")) and isinstance(value, int):
            changes[name] = value % 1000
        if (nested := _smaller_nested(value, level)) is not None:
            changes[name] = nested
    if level == 2:
        changes.update(_narrower({**options, **changes}, depths))
    return {name: value for name, value in changes.items() if value != options[name]}


def _per_block(name: str, value: object, depths: dict[str, object]) -> object | None:
    """Return a reduced option that has a value for each block or lists block numbers, None for other options."""
    total = next((d for d in depths.values()), None)
    if "global" in name and "att" in name and isinstance(value, list | tuple):
        # Keep one block global, the last of its stage, and the others windowed.
        last = min(total, 2) - 1 if isinstance(total, int) else sum(min(d, 2) for d in total[:-1]) - 1
        return type(value)([last])
    if isinstance(value, list | tuple) and isinstance(total, int) and len(value) == total > 2:
        return type(value)([value[0], value[-1]])
    return None


def _narrower(options: Mapping[str, object], depths: dict[str, object]) -> dict[str, object]:
    """Divide widths and heads by one factor, to keep the width of a head; then divide widths that are still large."""
    width_name = next((name for name in WIDTHS if options.get(name)), None)
    heads_name = next((name for name in HEADS if options.get(name)), None)
    if width_name is None:
        return {}
    width, heads = options[width_name], flat(options.get(heads_name) or 1)
    changes: dict[str, object] = {}
    common = math.gcd(*heads)
    if heads_name and isinstance(width, int) >= isinstance(options[heads_name], int) and flat(width)[0] % common == 0:
        keep = 2 if max(heads) == common > 1 else 1  # two heads if all stages have the same number
        changes[heads_name] = each(options[heads_name], lambda h: h // common * keep)
        new = each(width, lambda w: w // common * keep)
        units = [8 * h for h in flat(changes[heads_name])]
    else:  # the number of heads is independent of the width, or the width of a head is given
        unit = options.get("head_dim") or 32
        common = max(1, math.gcd(*flat(width)) // unit)
        new = each(width, lambda w: w // common) if all(w % (common * unit) == 0 for w in flat(width)) else width
        units = [unit] * len(flat(width))
    # A single width doubles at each stage.
    stages = next((len(d) for d in depths.values() if not isinstance(d, int)), 1) if isinstance(width, int) else 1
    factors = [f for f in range(1, 17) if all(w % (f * u) == 0 for w, u in zip(flat(new), units, strict=False))]
    enough = [f for f in factors if max(flat(new)) * 2 ** (stages - 1) / f <= WIDEST]
    factor = (enough or factors[-1:] or [1])[0]
    new = each(new, lambda w: w // factor)
    changes[width_name] = new
    for name in SHARED_HEADS:
        if options.get(name) and heads_name in changes:
            changes[name] = each(options[name], lambda kv: max(1, kv * flat(changes[heads_name])[0] // heads[0]))
    ratio = flat(new)[0] / flat(width)[0]
    for name in WITH_WIDTH:
        if options.get(name):
            changes[name] = each(options[name], lambda w: max(8, round(w * ratio / 8) * 8))
    return changes


def _smaller_nested(value: object, level: int) -> object | None:
    """Reduce a nested config: a dataclass, a transformers config, a dict, or a sequence of dataclasses."""
    if isinstance(value, tf.PretrainedConfig):
        return small_config(value, level)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **smaller(fields, level))
    if isinstance(value, dict):
        return {**value, **smaller(value, level)}
    if isinstance(value, list | tuple) and any(dataclasses.is_dataclass(v) for v in flat(value)):
        return each(value, lambda v: _smaller_nested(v, level) or v)
    return None


def each(value: object, change: Callable) -> object:
    """Apply ``change`` to a value, or to every element of a nested sequence."""
    if isinstance(value, list | tuple):
        return type(value)(each(v, change) for v in value)
    return change(value)


def _counts(value: object) -> bool:
    return all(isinstance(v, int) for v in flat(value))


def flat(value: object) -> list:
    """Return the elements of a nested sequence as a flat list; a single value counts as one element."""
    return [leaf for v in value for leaf in flat(v)] if isinstance(value, list | tuple) else [value]


def small_config(
    config: tf.PretrainedConfig, level: int, size: int | None = None, **options: object
) -> tf.PretrainedConfig:
    """Return a small copy of a config, constructed anew so that derived values fit."""
    names = [name for name in inspect.signature(type(config)).parameters if name not in DERIVED]
    fields = {name: getattr(config, name) for name in names if hasattr(config, name)}
    changes = {**smaller(fields, level), **options}
    for name in SIZES:
        if size is not None and fields.get(name):
            changes[name] = each(fields[name], lambda _: size)
    vision = changes.get("vision_config", fields.get("vision_config"))
    if size is not None and isinstance(vision, tf.PretrainedConfig):
        changes["vision_config"] = small_config(vision, 0, size)
    return type(config)(**{**fields, **changes})
