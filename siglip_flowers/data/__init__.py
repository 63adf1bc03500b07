"""Images of flowers with labels, from four sources in one shape."""

from siglip_flowers.data.identity import image_ids
from siglip_flowers.data.pixels.decoding import decode_rgb
from siglip_flowers.data.sources.load import (
    ClassificationData,
    check_data_arguments,
    load_data,
    resolve_source,
)

__all__ = [
    "ClassificationData",
    "check_data_arguments",
    "decode_rgb",
    "image_ids",
    "load_data",
    "resolve_source",
]
