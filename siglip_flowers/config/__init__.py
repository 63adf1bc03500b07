"""What can be configured, in four dataclasses: data, augmentation, model and training.

The help text of a field is its only documentation. Values are validated in ``__post_init__``
because argparse checks neither defaults nor values that came from a YAML file.
"""

from siglip_flowers.config.augmentation import AugmentationArguments
from siglip_flowers.config.checks import check_choice, check_positive, check_range
from siglip_flowers.config.data import DATA_SOURCES, SPLIT_PROTOCOLS, DataArguments
from siglip_flowers.config.model import HEAD_INITS, ModelArguments, parse_trainable
from siglip_flowers.config.training import (
    OBJECTIVES,
    TRACKERS,
    FlowersTrainingArguments,
    parse_wise_ft,
)

__all__ = [
    "DATA_SOURCES",
    "HEAD_INITS",
    "OBJECTIVES",
    "SPLIT_PROTOCOLS",
    "TRACKERS",
    "AugmentationArguments",
    "DataArguments",
    "FlowersTrainingArguments",
    "ModelArguments",
    "check_choice",
    "check_positive",
    "check_range",
    "parse_trainable",
    "parse_wise_ft",
]
