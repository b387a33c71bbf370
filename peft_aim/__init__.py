"""AIM as a PEFT method: any pretrained image transformer learns video with three small adapters per block.

Importing this package is all it takes to make PEFT know :class:`AIMConfig`.
"""

from peft_aim.config import AIMConfig
from peft_aim.model import AIMModel
from peft_aim.peft_type import register
from peft_aim.saving import hotswap_adapter
from peft_aim.version import __version__

__all__ = ["AIMConfig", "AIMModel", "__version__", "hotswap_adapter"]

register(AIMConfig, AIMModel)
