"""Find videos and their classes in folders, lists, tables and the files of data sets."""

from peft_aim.video.data.listing.contents import Listing, counted, shown, shown_names, split_name, texts_of
from peft_aim.video.data.listing.files import image_names, images_in, is_video_file
from peft_aim.video.data.listing.find import VideoSource, find_videos, has_split, read_listing
from peft_aim.video.data.listing.folders import is_folder_of_frames, videos_below
from peft_aim.video.data.listing.labels import by_index, class_names, indexed, merged, problem_type_of, read_names
from peft_aim.video.data.listing.sample import Label, Sample

__all__ = [
    "Label",
    "Listing",
    "Sample",
    "VideoSource",
    "by_index",
    "class_names",
    "counted",
    "find_videos",
    "has_split",
    "image_names",
    "images_in",
    "indexed",
    "is_folder_of_frames",
    "is_video_file",
    "merged",
    "problem_type_of",
    "read_listing",
    "read_names",
    "shown",
    "shown_names",
    "split_name",
    "texts_of",
    "videos_below",
]
