"""Write what a run found: metrics, curve, predictions and images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.files import digest_weight_files, write_json
from siglip_flowers.base.run_dir import METRICS_FILE, MODEL_DIR
from siglip_flowers.data import ClassificationData
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.evaluation.tables import write_predictions
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.plots.curves import plot_accuracy, plot_loss
from siglip_flowers.plots.examples import Example, choose_examples, save_examples
from siglip_flowers.runtime.devices import describe_device
from siglip_flowers.training.build import RunArguments
from siglip_flowers.training.history import write_history
from siglip_flowers.training.trainer import SiglipTrainer

EXAMPLES_RIGHT, EXAMPLES_WRONG = 6, 4


def describe_run(
    arguments: RunArguments,
    data: ClassificationData,
    model: SiglipClassifier,
) -> dict[str, Any]:
    """Return the facts that go beside a run's figures."""
    return {
        "data": {
            "source": data.source,
            "split_protocol": data.split_protocol,
            "description": data.description,
            "shots": arguments.data.shots,
            "shared_images": [list(pair) for pair in data.shared],
            "skipped_images": {name: len(ids) for name, ids in data.skipped.items()},
        },
        "model": {
            "model_id": arguments.model.model_name_or_path,
            "local": Path(arguments.model.model_name_or_path).is_dir(),
            "from_scratch": arguments.model.from_scratch,
            "head_init": arguments.model.head_init,
            "objective": arguments.training.objective,
            "pooling": model.config.pooling,
            "activation": model.config.activation,
            # A NaFlex tower has none.
            "image_size": getattr(model.config.vision_config, "image_size", None),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "environment": describe_environment(describe_device(arguments.training.device)),
    }


def describe_training(trainer: SiglipTrainer, outcome: dict[str, float]) -> dict[str, Any]:
    """Return how long and how a model was trained, from what ``Trainer.train`` returned."""
    state = trainer.state
    return {
        "epochs": state.epoch,
        "steps": state.global_step,
        "skipped_steps": trainer.anomalies.skipped,
        "best_step": state.best_global_step,
        "best_validation_accuracy": state.best_metric,
        "seconds": outcome["train_runtime"],
        "processes": trainer.accelerator.num_processes,
        "precision": trainer.accelerator.mixed_precision,
    }


def list_examples(test: SplitResult, data: ClassificationData, seed: int) -> list[Example]:
    """Return test images, right and wrong ones, with true class, predicted class, confidence."""
    names, predicted = data.class_names, test.logits.argmax(axis=1)
    rows = choose_examples(test.labels, test.probabilities, EXAMPLES_RIGHT, EXAMPLES_WRONG, seed)
    return [
        (
            data.splits["test"][row]["image"],
            names[test.labels[row]],
            names[predicted[row]],
            float(test.probabilities[row].max()),
        )
        for row in rows
    ]


def write_results(
    output_dir: Path,
    *,
    results: Mapping[str, SplitResult],
    history: list[dict[str, float | None]],
    data: ClassificationData,
    facts: dict[str, Any],
) -> None:
    """Write every file of a finished run; ``metrics.json`` comes last and marks it as finished."""
    test = results["test"]
    title = f"{Path(facts['model']['model_id']).name} on {data.description}"
    write_history(output_dir / "history.csv", history)
    plot_loss(history, output_dir / "loss_plot.png", title)
    plot_accuracy(history, output_dir / "accuracy_plot.png", title)
    names = data.class_names
    examples = list_examples(test, data, facts["training"]["seed"])
    save_examples(examples, output_dir, title)
    write_predictions(output_dir / "predictions_test.parquet", test, names, data.description)
    splits = {
        name: {"n": len(result.labels), **result.metrics, "per_class": result.per_class}
        for name, result in results.items()
    }
    # Ties the figures to these weights and no others.
    weights = digest_weight_files(output_dir / MODEL_DIR)
    write_json(
        output_dir / METRICS_FILE, {"title": title, **facts, "weights": weights, "splits": splits}
    )
