"""A Trainer built as a run builds it, on a few photographs and a small SigLIP."""

from pathlib import Path
from typing import Any

from transformers import set_seed

from siglip_flowers.config import AugmentationArguments, DataArguments, ModelArguments
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.splits import ClassificationData
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.training.build import RunArguments, build_model
from siglip_flowers.training.trainer import SiglipTrainer


def start_trainer(
    checkpoint: Path,
    data: ClassificationData,
    output_dir: Path,
    model: dict[str, Any] | None = None,
    augmentation: dict[str, Any] | None = None,
    **options: Any,
) -> SiglipTrainer:
    """Build a Trainer of four steps of eight images, in float32, that evaluates nothing.

    The run's arguments are the Trainer's ``run``.
    """
    options = {
        "max_steps": 4, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 16,
        "train_eval_samples": 4, "learning_rate": 1e-3, "warmup_steps": 0, "logging_steps": 1,
        "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
        "bf16": False, "use_cpu": True, "disable_tqdm": True, **options,
    }  # fmt: skip
    arguments = RunArguments(
        DataArguments(),
        AugmentationArguments(**(augmentation or {"augment": False})),
        ModelArguments(model_name_or_path=str(checkpoint), **(model or {})),
        SiglipTrainingArguments(output_dir=str(output_dir), **options),
    )
    set_seed(arguments.training.seed)
    processor = load_image_processor(str(checkpoint))
    built = build_model(arguments, data, processor)
    trainer: Any = SiglipTrainer(arguments, data, built, processor)
    trainer.run = arguments
    return trainer


def copy_weights(trainer: SiglipTrainer) -> dict[str, Any]:
    """Return a copy of the model's weights by name."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def list_changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return the names of the weights that are not bit for bit the same."""
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}
