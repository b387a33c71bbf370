"""Video files as frames: the same frames, in the same order, at the same times as FFmpeg plays them."""

from peft_aim.video.data.decode.container import ANY_TITLE, best_stream, decoded_packets, is_hdr, is_url
from peft_aim.video.data.decode.damage import Damage
from peft_aim.video.data.decode.opening import open_video
from peft_aim.video.data.decode.picture import Pictures
from peft_aim.video.data.decode.segment import Segment
from peft_aim.video.data.decode.times import elapsed, may_restart, usual_step
from peft_aim.video.data.decode.video import BrokenVideo, Video

__all__ = [
    "ANY_TITLE",
    "BrokenVideo",
    "Damage",
    "Pictures",
    "Segment",
    "Video",
    "best_stream",
    "decoded_packets",
    "elapsed",
    "is_hdr",
    "is_url",
    "may_restart",
    "open_video",
    "usual_step",
]
