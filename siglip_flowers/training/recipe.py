"""Check adapters and layer decay against the other options."""

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import ModelArguments, SiglipTrainingArguments
from siglip_flowers.model.adapters import check_peft


def check_recipe(model: ModelArguments, training: SiglipTrainingArguments) -> None:
    """Raise InputError for options of the recipe that have nothing to act on, or no means to."""
    if model.lora_r is not None:
        check_peft()
        if training.wise_ft is not None:
            raise InputError(
                f"--wise_ft {training.wise_ft} averages whole models, after which the adapters of "
                f"--lora_r {model.lora_r} would no longer be those of the saved model; drop one of "
                "the two."
            )
    if model.trainable == "head" and training.layer_decay:
        raise InputError(
            f"--layer_decay {training.layer_decay} acts on an encoder that trains, and "
            "--trainable head leaves it as it is; drop one of the two."
        )
