"""Observes a module that somebody else wrote: which modules it calls, on what, and whether two are copies.

The lowest layer of the package: it knows nothing about attention, blocks or adapters.
"""

from peft_aim.tracing.calls import Call, Handle, trace
from peft_aim.tracing.copies import traits
from peft_aim.tracing.example import blank_images, drawn, image_size, runs_on
from peft_aim.tracing.hollow import passing_marks, without_arithmetic, without_weights
from peft_aim.tracing.layout import Layout
from peft_aim.tracing.outputs import (
    Images,
    first_argument,
    first_parameter,
    first_tensor,
    map_tensors,
    replace_first,
    run,
    tensors_in,
    tokens_given,
    with_first_argument,
    with_tokens,
)
from peft_aim.tracing.packed import computing_weight, is_linear, is_packed, is_plain, plain_layer, unknown_storage
from peft_aim.tracing.parts import (
    acts_on_each_position,
    channel_axis,
    copy_without_hooks,
    input_width,
    is_dropout,
    is_mixer,
    is_norm,
    mixes,
    norm_width,
    output_width,
)
from peft_aim.tracing.restored import running, unchanged
from peft_aim.tracing.stand_ins import standing_in
from peft_aim.tracing.switches import uncompiled

__all__ = [
    "Call",
    "Handle",
    "Images",
    "Layout",
    "acts_on_each_position",
    "blank_images",
    "channel_axis",
    "computing_weight",
    "copy_without_hooks",
    "drawn",
    "first_argument",
    "first_parameter",
    "first_tensor",
    "image_size",
    "input_width",
    "is_dropout",
    "is_linear",
    "is_mixer",
    "is_norm",
    "is_packed",
    "is_plain",
    "map_tensors",
    "mixes",
    "norm_width",
    "output_width",
    "passing_marks",
    "plain_layer",
    "replace_first",
    "run",
    "running",
    "runs_on",
    "standing_in",
    "tensors_in",
    "tokens_given",
    "trace",
    "traits",
    "unchanged",
    "uncompiled",
    "unknown_storage",
    "with_first_argument",
    "with_tokens",
    "without_arithmetic",
    "without_weights",
]
