"""Find videos and their classes in folders, lists, tables and the files of data sets."""

from peft_aim.video.data.listing.contents import Labeled, Listing
from peft_aim.video.data.listing.files import IMAGES, SUFFIXES, images_in, is_image, is_video
from peft_aim.video.data.listing.find import find_videos, has_split, read_listing
from peft_aim.video.data.listing.labels import by_index, class_names, indexed, read_names

__all__ = [
    "IMAGES",
    "SUFFIXES",
    "Labeled",
    "Listing",
    "by_index",
    "class_names",
    "find_videos",
    "has_split",
    "images_in",
    "indexed",
    "is_image",
    "is_video",
    "read_listing",
    "read_names",
]
