"""AIM as a PEFT method: adapt a pretrained image transformer to video with three small adapters per block.

Importing this package registers :class:`AIMConfig` with PEFT.
"""

from peft_aim.config import AIMConfig
from peft_aim.model import AIMModel
from peft_aim.peft_type import register
from peft_aim.saving import extend_peft_model, hotswap_adapter
from peft_aim.version import __version__

__all__ = ["AIMConfig", "AIMModel", "__version__", "hotswap_adapter"]

register(AIMConfig, AIMModel)
extend_peft_model()
