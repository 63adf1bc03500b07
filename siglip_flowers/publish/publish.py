"""From a finished run to a model on the Hub: assemble the files, try them, push them."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging as transformers_logging

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import atomic_directory, digest_weight_files, write_json, write_text
from siglip_flowers.base.run_dir import METRICS_FILE, RUN_FILES
from siglip_flowers.config import DataArguments
from siglip_flowers.inference.sidecars import CALIBRATION_FILE, OOD_FILE
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.model.native import explain_not_native, to_native
from siglip_flowers.publish import remote
from siglip_flowers.publish.card import build_card
from siglip_flowers.publish.check import check_predictions, load_test_split
from siglip_flowers.publish.finished import FinishedRun, read_finished_run
from siglip_flowers.publish.hub import push_directory
from siglip_flowers.publish.options import PublishArguments

MODELING_FILE = "modeling_siglip_classifier.py"
AUTO_MAP = {
    "AutoConfig": "modeling_siglip_classifier.SiglipClassifierConfig",
    "AutoModelForImageClassification": "modeling_siglip_classifier.SiglipClassifier",
}
# Figures of the training, and none of the examples, which are the data set's images.
FIGURES = tuple(
    name for name in RUN_FILES if name.endswith(".png") and not name.startswith("example")
)


def publish_run(
    options: PublishArguments, data_arguments: DataArguments, report: Callable[[str], None]
) -> None:
    """Assemble what a finished run gives, try it on test images, and push it.

    Args:
        options: What and where to.
        data_arguments: The data that the run was trained on.
        report: Is told each step in a line.

    Raises:
        InputError: There is no finished run, or no data to try it on.
        RunError: Files and figures do not belong together, or the push failed.
    """
    assert options.run is not None
    run = read_finished_run(Path(options.run))
    rows = load_test_split(data_arguments)
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_") as place:
        staged = Path(place) / "model"
        native = assemble(run, staged, options)
        count = check_predictions(staged, run, rows, native=native, samples=options.check_samples)
        kind = "a plain class of transformers" if native else f"with {MODELING_FILE}"
        report(f"{run.directory}: {kind}; classifies {count} test images as recorded")
        if options.output_dir is not None:
            with atomic_directory(Path(options.output_dir)) as directory:
                shutil.copytree(staged, directory, dirs_exist_ok=True)
            report(f"the files are in {options.output_dir}")
        if options.hub_model_id is not None:
            address = push_directory(
                staged,
                options.hub_model_id,
                private=options.hub_private_repo,
                message=options.commit_message,
            )
            report(f"published: {address}")


def assemble(run: FinishedRun, directory: Path, options: PublishArguments) -> bool:
    """Write everything that is published to a new directory.

    Returns:
        Whether the model is a plain class of transformers; else it has its modelling file.

    Raises:
        RunError: The copied weights are not those that were measured.
    """
    model = load_saved_classifier(str(run.model_dir))
    native = explain_not_native(model) is None
    published = to_native(model) if native else model
    if not native:
        published.config.auto_map = dict(AUTO_MAP)
        published.config.vision_config._name_or_path = run.base_model or ""
    # Saving compares with a default text tower, whose own defaults contradict each other.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    published.save_pretrained(directory)
    transformers_logging.set_verbosity(verbosity)
    if not native:
        shutil.copy(Path(str(remote.__path__[0])) / MODELING_FILE, directory / MODELING_FILE)
    load_image_processor(str(run.model_dir)).save_pretrained(directory)
    # What this package reads beside the weights where it is asked to.
    for name in (OOD_FILE, CALIBRATION_FILE):
        if (run.model_dir / name).is_file():
            shutil.copy(run.model_dir / name, directory / name)
    _check_same_weights(run.model_dir, directory)
    figures = [name for name in FIGURES if (run.directory / name).is_file()]
    for name in (*figures, "history.csv"):
        shutil.copy(run.directory / name, directory / name)
    # The same tensors, but another file: its metadata may differ.
    weights = digest_weight_files(directory)
    metrics: dict[str, Any] = {**run.metrics, "weights": weights}
    metrics["model"] = {
        **{key: value for key, value in metrics["model"].items() if key != "local"},
        "model_id": run.base_model,
    }
    write_json(directory / METRICS_FILE, metrics)
    card = build_card(
        run,
        published.config,
        model_id=options.hub_model_id or Path(str(options.output_dir)).name,
        license=options.license,
        language=options.language,
        native=native,
        plots=figures,
        weights=weights,
    )
    write_text(directory / "README.md", str(card))
    return native


def _check_same_weights(measured: Path, published: Path) -> None:
    """Raise RunError unless both directories hold the same tensors, bit for bit."""
    ours, theirs = _read_tensors(measured), _read_tensors(published)
    if ours.keys() != theirs.keys() or any(
        not tensor.equal(theirs[name]) or tensor.dtype != theirs[name].dtype
        for name, tensor in ours.items()
    ):
        raise RunError(
            f"The weights that would be published are not those in {measured}; nothing was pushed."
        )


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in directory.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
