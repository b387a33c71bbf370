"""Find videos and their classes in folders, lists, tables and the files of data sets."""

from peft_aim.video.data.listing.contents import Labeled, Listing, shown, shown_names, split_name
from peft_aim.video.data.listing.files import image_names, images_in, is_video_file
from peft_aim.video.data.listing.find import VideoSource, find_videos, has_split, read_listing
from peft_aim.video.data.listing.folders import is_folder_of_frames, videos_below
from peft_aim.video.data.listing.labels import by_index, class_names, indexed, read_names

__all__ = [
    "Labeled",
    "Listing",
    "VideoSource",
    "by_index",
    "class_names",
    "find_videos",
    "has_split",
    "image_names",
    "images_in",
    "indexed",
    "is_folder_of_frames",
    "is_video_file",
    "read_listing",
    "read_names",
    "shown",
    "shown_names",
    "split_name",
    "videos_below",
]
