"""Fine-tune SigLIP and SigLIP 2 vision encoders into image classifiers.

Importing ``siglip_flowers.model``, or one of the names below, makes the classifier known to the
Auto classes of transformers, and with them to ``pipeline("image-classification")``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from siglip_flowers.base.version import __version__

if TYPE_CHECKING:
    from siglip_flowers.commands.eval import evaluate
    from siglip_flowers.commands.train import train
    from siglip_flowers.inference.classifier import SiglipImageClassifier
    from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig

__all__ = [
    "SiglipClassifier",
    "SiglipClassifierConfig",
    "SiglipImageClassifier",
    "__version__",
    "evaluate",
    "train",
]

# Imported on first use: torch takes a second, which --help must not cost.
_MODULES = {
    "train": "siglip_flowers.commands.train",
    "evaluate": "siglip_flowers.commands.eval",
    "SiglipImageClassifier": "siglip_flowers.inference.classifier",
    "SiglipClassifier": "siglip_flowers.model.classifier",
    "SiglipClassifierConfig": "siglip_flowers.model.classifier",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
