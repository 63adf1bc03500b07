"""Collect what trackers are told about a run."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from siglip_flowers.base.run_dir import MODEL_DIR
from siglip_flowers.data import ClassificationData
from siglip_flowers.evaluation.predict import SplitResult
from siglip_flowers.metrics.functions import confusion_matrix
from siglip_flowers.plots.confusion import draw_confusion
from siglip_flowers.plots.theme import to_image
from siglip_flowers.tracking import FinalResults, RunFacts
from siglip_flowers.training.build import RunArguments
from siglip_flowers.training.report import list_examples


def describe_facts(arguments: RunArguments, data: ClassificationData) -> RunFacts:
    """Return what is known before the first step; a configuration contains no secrets."""
    output_dir = Path(str(arguments.training.output_dir))
    config = yaml.safe_load(arguments.dump())
    config["data_description"] = data.description
    config["num_classes"] = len(data.class_names)
    return RunFacts(output_dir.resolve().name, config, output_dir)


def collect_results(
    results: Mapping[str, SplitResult], data: ClassificationData, seed: int, output_dir: Path
) -> FinalResults:
    """Return figures, example images and the confusion matrix of a finished run."""
    test, names = results["test"], data.class_names
    counts = confusion_matrix(test.labels, test.logits.argmax(axis=1), len(names))
    return FinalResults(
        metrics={split: dict(result.metrics) for split, result in results.items()},
        examples=list_examples(test, data, seed),
        confusion=to_image(draw_confusion(counts, names, "Confusion on the test split")),
        model_dir=output_dir / MODEL_DIR,
    )
