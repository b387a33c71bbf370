"""Runs an image model on clips: folds frames into the batch, averages outputs over frames, adds one loss per clip.

Layers look up the number of frames per clip in :class:`Frames`.
"""

from peft_aim.clips.before_head import features
from peft_aim.clips.fold import Clips, has_checkpoints, per_clip
from peft_aim.clips.frames import ClipShape, Frames, Span
from peft_aim.clips.past import Cell, Continued, Part, Past, kept, times
from peft_aim.clips.per_thread import PerThread
from peft_aim.clips.rows import join_rows, rows_by_name, select_rows

__all__ = [
    "Cell",
    "ClipShape",
    "Clips",
    "Continued",
    "Frames",
    "Part",
    "Past",
    "PerThread",
    "Span",
    "features",
    "has_checkpoints",
    "join_rows",
    "kept",
    "per_clip",
    "rows_by_name",
    "select_rows",
    "times",
]
