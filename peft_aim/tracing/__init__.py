"""Observes a module that somebody else wrote: which modules it calls, on what, and whether two are copies.

The lowest layer of the package: it knows nothing about attention, blocks or adapters.
"""

from peft_aim.tracing.calls import Call, Handle, running, trace
from peft_aim.tracing.copies import traits
from peft_aim.tracing.example import blank_images, drawn, image_size, runs_on
from peft_aim.tracing.outputs import (
    Images,
    first_argument,
    first_parameter,
    first_tensor,
    map_tensors,
    replace_first,
    run,
    tensors_in,
    with_first_argument,
)
from peft_aim.tracing.parts import (
    MIXERS,
    acts_on_each_position,
    channel_axis,
    copy_without_hooks,
    input_width,
    is_norm,
    mixes,
    norm_width,
)
from peft_aim.tracing.stand_ins import standing_in

__all__ = [
    "MIXERS",
    "Call",
    "Handle",
    "Images",
    "acts_on_each_position",
    "blank_images",
    "channel_axis",
    "copy_without_hooks",
    "drawn",
    "first_argument",
    "first_parameter",
    "first_tensor",
    "image_size",
    "input_width",
    "is_norm",
    "map_tensors",
    "mixes",
    "norm_width",
    "replace_first",
    "run",
    "running",
    "runs_on",
    "standing_in",
    "tensors_in",
    "trace",
    "traits",
    "with_first_argument",
]
