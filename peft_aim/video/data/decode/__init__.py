"""Video files as frames: the same frames, in the same order, at the same times as FFmpeg plays them."""

from peft_aim.video.data.decode.opening import open_video
from peft_aim.video.data.decode.video import BrokenVideo, Video

__all__ = ["BrokenVideo", "Video", "open_video"]
