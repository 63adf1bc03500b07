"""From a finished run to a model on the Hub: collect the files, check them, push them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import logging as hub_logging
from safetensors.torch import load_file
from torch import Tensor

from siglip_flowers.base import files
from siglip_flowers.base.errors import RunError
from siglip_flowers.base.paths import prepare_hub
from siglip_flowers.base.text import count, first_line
from siglip_flowers.config import DataArguments
from siglip_flowers.data.rows import get_labels, read_images
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.inference.sidecars import CALIBRATION_FILE, EXAMPLE_FILES, OOD_FILE
from siglip_flowers.model import modeling_siglip_classifier as modeling
from siglip_flowers.model.classifier import is_plain, to_native
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.model.weights import quiet_transformers
from siglip_flowers.publish.card import PLOTS, build_card
from siglip_flowers.publish.check import check_published
from siglip_flowers.publish.finished import COPY, FinishedRun, read_finished_run
from siglip_flowers.publish.options import PublishArguments

MODELING_FILE = "modeling_siglip_classifier.py"
AUTO_MAP = {
    "AutoConfig": "modeling_siglip_classifier.SiglipClassifierConfig",
    "AutoModelForImageClassification": "modeling_siglip_classifier.SiglipClassifier",
}
LOGIN = "log in with 'hf auth login' or set HF_TOKEN"
REMEDIES = {
    401: LOGIN,
    403: "use a token with write access, or another name",
    404: "check the name and the rights of the token",
}
RETRY = "try again later with the same command, which uploads only what is missing"
# Weights, code and examples that an earlier push of another model may have left.
REPLACED_FILES = ["*.safetensors", "*.safetensors.index.json", "*.py", "examples/*"]
EXAMPLE_PIXELS = 384
# Base class of the errors of the HTTP library, which differs between versions of the client.
HTTPError: type[Exception] = HfHubHTTPError.__mro__[1]


def publish_run(options: PublishArguments, data_arguments: DataArguments) -> None:
    """Collect the files of a finished run, check them on test images, and push them.

    Args:
        options: What to publish and where.
        data_arguments: The data that the run was trained on.

    Raises:
        InputError: There is no finished run, or no data to check it on.
        RunError: Files and figures do not belong together, or the push failed.
    """
    assert options.run is not None
    run = read_finished_run(Path(options.run))
    rows = load_data(data_arguments).splits["test"]
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_") as place:
        staged = Path(place) / "model"
        config = write_model(run, staged)
        native = not hasattr(config, "auto_map")
        samples = min(options.check_samples, len(rows))
        differences = check_published(staged, run, rows, native=native, samples=samples)
        how = "with transformers alone" if native else f"with the enclosed {MODELING_FILE}"
        images = count(samples, "test image")
        print(f"Checked: the files to publish classify {images} as recorded, {how}.")
        write_figures(run, staged)
        if options.example_images:
            write_examples(rows, staged)
        with files.reading(run.directory / files.METRICS_FILE, COPY):
            card = build_card(run, config, options, staged, differences)
        files.write_text(staged / "README.md", str(card))
        if options.output_dir is not None:
            with files.atomic_directory(Path(options.output_dir)) as directory:
                shutil.copytree(staged, directory, dirs_exist_ok=True)
            print(f"The files are in {options.output_dir}.")
        if options.hub_model_id is not None:
            address = push_directory(staged, options.hub_model_id, options.hub_private_repo)
            print(f"Published: {address}")


def write_model(run: FinishedRun, directory: Path) -> Any:
    """Write model and image processor to a new directory and return the model's configuration.

    It has an ``auto_map`` unless the model is a plain class of transformers.

    Raises:
        RunError: The written weights are not those that were measured.
    """
    ours = _read_tensors(run.model_dir)
    # Loaded in float32, whatever --save_dtype wrote.
    model = load_saved_classifier(str(run.model_dir))
    if is_plain(model):
        published: Any = to_native(model)
    else:
        published = model
        published.config.auto_map = dict(AUTO_MAP)
        published.config.vision_config._name_or_path = run.base_model or ""
    published.to(next(iter(ours.values())).dtype)
    with quiet_transformers():
        published.save_pretrained(directory)
    if published is model:
        shutil.copy(str(modeling.__file__), directory)
    load_image_processor(str(run.model_dir)).save_pretrained(directory)
    # Optional files that this package reads.
    for name in (OOD_FILE, CALIBRATION_FILE):
        if (run.model_dir / name).is_file():
            shutil.copy(run.model_dir / name, directory)
    theirs = _read_tensors(directory)
    if ours.keys() != theirs.keys() or any(
        not tensor.equal(theirs[name]) or tensor.dtype != theirs[name].dtype
        for name, tensor in ours.items()
    ):
        raise RunError(
            f"The weights to be published are not those in {run.model_dir}; nothing was pushed."
        )
    return published.config


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    return {
        name: tensor
        for path in directory.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def write_figures(run: FinishedRun, directory: Path) -> None:
    """Write the metrics of a run, and its history and plots if there are any."""
    for name in (*PLOTS, "history.csv"):
        if (run.directory / name).is_file():
            shutil.copy(run.directory / name, directory)
    # The tensors are the same, but the metadata of the file may differ.
    metrics: dict[str, Any] = {**run.metrics, "weights": files.digest_weight_files(directory)}
    metrics["model"] = {key: value for key, value in metrics["model"].items() if key != "local"}
    files.write_json(directory / files.METRICS_FILE, metrics)


def write_examples(rows: datasets.Dataset, directory: Path) -> None:
    """Write a thumbnail of a test image of each of the first classes, without metadata."""
    labels = get_labels(rows).tolist()
    for label, name in enumerate(EXAMPLE_FILES):
        if label in labels:
            (image,) = read_images(rows, [labels.index(label)])
            image.thumbnail((EXAMPLE_PIXELS, EXAMPLE_PIXELS))
            (directory / name).parent.mkdir(exist_ok=True)
            # Pillow would write the original's comment.
            image.save(directory / name, quality=85, comment="")


def check_hub_access(hub_model_id: str) -> None:
    """Raise RunError unless the Hub can be reached and accepts the token."""
    # The client goes offline if the Hub did not answer a moment ago, too.
    if constants.HF_HUB_OFFLINE and (reason := prepare_hub()):
        raise RunError(
            f"{hub_model_id} cannot be pushed: {reason}. Change that and repeat the command."
        )
    if get_token() is None:
        raise RunError(f"{hub_model_id} cannot be pushed without a token; {LOGIN}.")
    with _explained_errors(hub_model_id):
        HfApi().whoami()


def push_directory(directory: Path, hub_model_id: str, private: bool | None = None) -> str:
    """Upload a directory in one commit and return its address.

    Files that an interrupted push has uploaded already are not uploaded again.

    Args:
        directory: The files.
        hub_model_id: ``ORG/NAME``; created if missing.
        private: Whether a new repository is private; None uses the organization's setting.

    Raises:
        RunError: The Hub refused, failed or could not be reached.
    """
    api = HfApi()
    with _explained_errors(hub_model_id):
        api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=hub_model_id,
            folder_path=directory,
            commit_message="Publish the classifier",
            delete_patterns=REPLACED_FILES,
        )
    return f"{api.endpoint}/{hub_model_id}"


@contextmanager
def _explained_errors(hub_model_id: str) -> Iterator[None]:
    """Turn an error of the Hub or of the network into one sentence."""
    verbosity = hub_logging.get_verbosity()
    # The client would log the addresses of uploads, which are signed.
    hub_logging.set_verbosity_error()
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        raise RunError(f"{hub_model_id} could not be pushed: {_explain_failure(error)}.") from error
    finally:
        hub_logging.set_verbosity(verbosity)


def _explain_failure(error: BaseException) -> str:
    # Uploads wrap the error of the request.
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status: int = error.response.status_code
        told = " ".join((error.server_message or "").split()).rstrip(".") or first_line(error)
        return f"the Hub answered {status} ({told}); {REMEDIES.get(status, RETRY)}"
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"{constants.ENDPOINT} could not be reached ({reason}); check the network and {RETRY}"
