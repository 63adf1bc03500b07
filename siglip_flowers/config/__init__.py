"""What can be configured, in dataclasses: data, augmentation, model, training and evaluation.

The help text of a field is its only documentation. Values are validated in ``__post_init__``,
combinations of them by ``rules.py``.

``SiglipTrainingArguments`` imports torch and is therefore imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from siglip_flowers.config.data import AugmentationArguments, DataArguments
from siglip_flowers.config.evaluation import EvaluationArguments
from siglip_flowers.config.model import ModelArguments
from siglip_flowers.config.training_options import TrainingOptions

if TYPE_CHECKING:
    from siglip_flowers.config.training import SiglipTrainingArguments

__all__ = [
    "AugmentationArguments",
    "DataArguments",
    "EvaluationArguments",
    "ModelArguments",
    "SiglipTrainingArguments",
    "TrainingOptions",
]


def __getattr__(name: str) -> Any:
    if name == "SiglipTrainingArguments":
        from siglip_flowers.config.training import SiglipTrainingArguments

        return SiglipTrainingArguments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
