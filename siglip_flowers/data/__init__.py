"""Labeled images from all sources in one shape."""

from siglip_flowers.data.inspection import check_images
from siglip_flowers.data.rows import image_ids, read_images
from siglip_flowers.data.sources.load import (
    check_data_arguments,
    download_data,
    load_data,
    open_data,
)
from siglip_flowers.data.splits import ClassificationData

__all__ = [
    "ClassificationData",
    "check_data_arguments",
    "check_images",
    "download_data",
    "image_ids",
    "load_data",
    "open_data",
    "read_images",
]
