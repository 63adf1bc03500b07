"""Images of flowers with labels, from four sources in one shape."""

from siglip_flowers.data.identity import image_ids
from siglip_flowers.data.pixels.decoding import decode_rgb
from siglip_flowers.data.sources.load import (
    FlowerData,
    check_data_arguments,
    load_flowers,
    resolve_source,
)

__all__ = [
    "FlowerData",
    "check_data_arguments",
    "decode_rgb",
    "image_ids",
    "load_flowers",
    "resolve_source",
]
