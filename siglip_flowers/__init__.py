"""Fine-tune SigLIP and SigLIP 2 vision encoders into image classifiers.

Importing the package makes its classifier known to the Auto classes of transformers, and with
them to ``pipeline("image-classification")``.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.configuration import SiglipClassifierConfig

__version__ = "0.1.0"
__all__ = ["SiglipClassifier", "SiglipClassifierConfig"]

AutoConfig.register(SiglipClassifierConfig.model_type, SiglipClassifierConfig)
AutoModelForImageClassification.register(SiglipClassifierConfig, SiglipClassifier)
