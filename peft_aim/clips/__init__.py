"""One call of an image model on clips: frames folded into the batch, outputs averaged, the loss per clip.

Layers ask :class:`Frames` which tokens are frames of one clip.
"""

from peft_aim.clips.fold import Clips, mixed_batch_message, per_clip
from peft_aim.clips.frames import Frames
from peft_aim.clips.per_thread import PerThread

__all__ = ["Clips", "Frames", "PerThread", "mixed_batch_message", "per_clip"]
