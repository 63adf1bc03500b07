"""What can be configured, in dataclasses: data, augmentation, model, training and evaluation.

The help text of a field is its only documentation. Values are validated in ``__post_init__``,
combinations of them by ``rules.py``.

``SiglipTrainingArguments`` imports torch and is therefore imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from siglip_flowers.config.data import (
    DATA_SOURCES,
    SPLIT_PROTOCOLS,
    AugmentationArguments,
    DataArguments,
)
from siglip_flowers.config.evaluation import EvaluationArguments
from siglip_flowers.config.fields import check_choice, check_positive, check_range
from siglip_flowers.config.model import HEAD_INITS, ModelArguments, parse_trainable
from siglip_flowers.config.training_options import (
    OBJECTIVES,
    TRACKERS,
    TrainingOptions,
    parse_wise_ft,
)

if TYPE_CHECKING:
    from siglip_flowers.config.training import SiglipTrainingArguments

__all__ = [
    "DATA_SOURCES",
    "HEAD_INITS",
    "OBJECTIVES",
    "SPLIT_PROTOCOLS",
    "TRACKERS",
    "AugmentationArguments",
    "DataArguments",
    "EvaluationArguments",
    "ModelArguments",
    "SiglipTrainingArguments",
    "TrainingOptions",
    "check_choice",
    "check_positive",
    "check_range",
    "parse_trainable",
    "parse_wise_ft",
]


def __getattr__(name: str) -> Any:
    if name == "SiglipTrainingArguments":
        from siglip_flowers.config.training import SiglipTrainingArguments

        return SiglipTrainingArguments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
