"""Video data: listing files, decoding, frame sampling, preprocessing and datasets of clips.

Requires the extra "video", like the packages that build on it.
"""

from peft_aim.video.data.balance import class_weights, positive_weights
from peft_aim.video.data.clips import IGNORED, EvaluationClips, NoiseClips, TrainingClips, mixed, why_unreadable
from peft_aim.video.data.data import Data, listed, notes_on, notes_on_evaluation, read_labels, typical_timing
from peft_aim.video.data.decode import BrokenVideo, Video, open_video
from peft_aim.video.data.given import given_videos
from peft_aim.video.data.labels import target_of
from peft_aim.video.data.listing import (
    Label,
    Sample,
    VideoSource,
    by_index,
    counted,
    find_videos,
    indexed,
    read_names,
    texts_of,
)
from peft_aim.video.data.remarks import Remarked, Remarks
from peft_aim.video.data.sampling import evaluation_frames, windows
from peft_aim.video.data.streaming import views_of_windows
from peft_aim.video.data.transforms import ForEvaluation, ForTraining, Preprocessing, mirrored_labels, to_image
from peft_aim.video.data.views import Views

__all__ = [
    "IGNORED",
    "BrokenVideo",
    "Data",
    "EvaluationClips",
    "ForEvaluation",
    "ForTraining",
    "Label",
    "NoiseClips",
    "Preprocessing",
    "Remarked",
    "Remarks",
    "Sample",
    "TrainingClips",
    "Video",
    "VideoSource",
    "Views",
    "by_index",
    "class_weights",
    "counted",
    "evaluation_frames",
    "find_videos",
    "given_videos",
    "indexed",
    "listed",
    "mirrored_labels",
    "mixed",
    "notes_on",
    "notes_on_evaluation",
    "open_video",
    "positive_weights",
    "read_labels",
    "read_names",
    "target_of",
    "texts_of",
    "to_image",
    "typical_timing",
    "views_of_windows",
    "why_unreadable",
    "windows",
]
