"""What can be configured, in dataclasses: data, augmentation, model, training and evaluation.

The help text of a field is its only documentation. Values are validated in ``__post_init__``,
combinations of them by ``rules.py``.

``SiglipTrainingArguments`` imports torch, and is in ``training.py``.
"""

from siglip_flowers.config.data import AugmentationArguments, DataArguments
from siglip_flowers.config.evaluation import EvaluationArguments
from siglip_flowers.config.model import ModelArguments
from siglip_flowers.config.training_options import TrainingOptions

__all__ = [
    "AugmentationArguments",
    "DataArguments",
    "EvaluationArguments",
    "ModelArguments",
    "TrainingOptions",
]
