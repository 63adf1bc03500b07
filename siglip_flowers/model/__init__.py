"""The classifier, and how it is made, loaded and trained in part.

Importing the package makes the classifier known to the Auto classes of transformers, and with them
to ``pipeline("image-classification")``.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig

__all__ = ["SiglipClassifier", "SiglipClassifierConfig"]

AutoConfig.register(SiglipClassifierConfig.model_type, SiglipClassifierConfig)
AutoModelForImageClassification.register(SiglipClassifierConfig, SiglipClassifier)
