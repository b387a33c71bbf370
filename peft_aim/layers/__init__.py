"""The tuner layers: a block with its adapters, and an adapter's own head, final norm and temporal embedding.

Their computations on plain tensors are in :mod:`peft_aim.layers.adapter`.
"""

from peft_aim.layers.adapter import add_temporal_embedding, from_time, initialize, to_time
from peft_aim.layers.base import WHY_NO_MERGE, WHY_NO_SUM, AIMTunerLayer, is_decayed
from peft_aim.layers.block import BRANCHES, AIMLayer
from peft_aim.layers.effect import check_effect
from peft_aim.layers.embedding import EMBEDDING, AIMEmbedding, saved_name
from peft_aim.layers.head import AIMHead
from peft_aim.layers.mixed import with_adapter_names
from peft_aim.layers.norm import AIMNorm
from peft_aim.layers.temporal import TemporalAttention, TemporalConvolution

__all__ = [
    "BRANCHES",
    "EMBEDDING",
    "WHY_NO_MERGE",
    "WHY_NO_SUM",
    "AIMEmbedding",
    "AIMHead",
    "AIMLayer",
    "AIMNorm",
    "AIMTunerLayer",
    "TemporalAttention",
    "TemporalConvolution",
    "add_temporal_embedding",
    "check_effect",
    "from_time",
    "initialize",
    "is_decayed",
    "saved_name",
    "to_time",
    "with_adapter_names",
]
