"""One training run from start to finish: data, model, Trainer, test figures, images."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from siglip_flowers.base.files import atomic_directory, write_json
from siglip_flowers.base.run_dir import ADAPTER_DIR, MODEL_DIR
from siglip_flowers.config import parse_wise_ft
from siglip_flowers.config.rules import has_measured_start
from siglip_flowers.data import ClassificationData, download_data, image_ids, load_data
from siglip_flowers.evaluation.features import FitHead, fit_head
from siglip_flowers.evaluation.fitting import (
    fit_and_save_temperature,
    fit_ood_detector,
    measure_ood_detector,
)
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.evaluation.run import list_metrics
from siglip_flowers.model.adapters import fold_model, has_adapters, save_adapter
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.contrastive import ContrastiveSiglip
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.runtime.memory import is_out_of_memory
from siglip_flowers.runtime.processes import check_world
from siglip_flowers.tracking import Trackers, build_trackers
from siglip_flowers.training.build import (
    RunArguments,
    build_model,
    build_trainer,
    check_arguments,
    check_free_disk,
    draw_train_sample,
    fits_on_features,
    name_start,
)
from siglip_flowers.training.compute import set_cpu_threads, shrink_batch
from siglip_flowers.training.output import claim_output_dir, find_checkpoint, hold_output_dir
from siglip_flowers.training.results import (
    build_history,
    collect_results,
    describe_choice,
    describe_facts,
    describe_plan,
    describe_run,
    describe_training,
    list_final_point,
    write_results,
)
from siglip_flowers.training.sharding import gather_model
from siglip_flowers.training.start import ensemble_with_start, measure_start
from siglip_flowers.training.trainer import SiglipTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run returns besides its files.

    Attributes:
        metrics: By split.
        history: The curve.
        output_dir: Where the files are.
        description: The data in a line.
        notes: Which checkpoint was chosen, and by what, in sentences.
    """

    metrics: dict[str, dict[str, float]]
    history: list[dict[str, float | None]]
    output_dir: Path
    description: str
    notes: list[str]


@dataclass(frozen=True)
class TrainedModel:
    """A model after training, and how it was trained.

    Attributes:
        model: The weights to keep.
        log: The Trainer's log; None if there was no Trainer.
        training: For ``training`` in the metrics file.
        facts: More for the metrics file.
        trainer: None if the head was fitted on features.
    """

    model: SiglipClassifier
    log: list[dict[str, Any]] | None
    training: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    trainer: SiglipTrainer | None = None


@dataclass(frozen=True)
class Run:
    """What every part of a run needs: the arguments, the data, the processor, the trackers."""

    arguments: RunArguments
    data: ClassificationData
    processor: Any
    trackers: Trackers

    @property
    def output_dir(self) -> Path:
        """The directory that the run writes to."""
        return Path(str(self.arguments.training.output_dir))

    @property
    def passes(self) -> PassOptions:
        """How splits are evaluated: in float32."""
        training = self.arguments.training
        return PassOptions(
            training.per_device_eval_batch_size,
            training.dataloader_num_workers or 0,
            data_arguments=self.arguments.data,
        )


def run_training(arguments: RunArguments, fit: FitHead | None = None) -> RunResult:
    """Train, keep the best weights, evaluate them and write everything to the output directory.

    Args:
        arguments: Of the run.
        fit: Fits the head on features instead of training step by step. By default ``fit_head``
            does if :func:`~siglip_flowers.training.build.fits_on_features`.

    Raises:
        InputError: The configuration cannot be carried out; nothing was written.
        RunError: Something failed on the way.
    """
    training = arguments.training
    check_world(PartialState().num_processes)
    check_arguments(arguments)
    set_cpu_threads(training.cpu_threads)
    download_data(arguments.data)
    with training.main_process_first(desc="loading the data"):
        data = load_data(arguments.data)
    set_seed(training.seed)
    options = arguments.model
    processor = load_image_processor(
        options.model_name_or_path, options.image_size, options.max_num_patches
    )
    model = build_model(arguments, data, processor)
    check_free_disk(model, training)
    run = Run(arguments, data, processor, build_trackers(training))
    # Only now is anything written or an earlier run deleted: the data and the weights are good.
    with hold_output_dir(run.output_dir), _closing(run.trackers):
        checkpoint = _open(run)
        if PartialState().is_main_process:
            print("\n".join(describe_plan(arguments, data, model, checkpoint)), flush=True)
        start = _measure_start(run, model)
        if fit is not None or fits_on_features(arguments):
            trained = _fit_on_features(run, model, fit)
        else:
            trained = _train(run, model, checkpoint)
        ensemble = _save_model(run, trained)
        return _measure_and_write(run, trained, start, ensemble)


@contextmanager
def _closing(trackers: Trackers) -> Iterator[None]:
    try:
        yield
    except BaseException:
        trackers.close(failed=True)
        raise
    trackers.close(failed=False)


def _open(run: Run) -> str | None:
    """Claim the output directory and open the trackers; return the checkpoint to resume from."""
    training, is_main = run.arguments.training, PartialState().is_main_process
    # Machines share the directory: the first process of all goes first, not one of each machine.
    with training.main_process_first(local=False, desc="claiming the output directory"):
        checkpoint = claim_output_dir(
            run.output_dir,
            run.arguments.dump(),
            overwrite=training.overwrite_output_dir and is_main,
            resume=training.resume == "auto",
            clear=is_main,
        )
    if checkpoint is not None:
        run.trackers.load(Path(checkpoint))
    run.trackers.open(describe_facts(run.arguments, run.data))
    if is_main:
        ids = {name: image_ids(rows) for name, rows in run.data.splits.items()}
        protocol = {"split_protocol": run.data.split_protocol}
        write_json(run.output_dir / "splits.json", protocol | ids)
    return checkpoint


def _describe_start(arguments: RunArguments, start: dict[str, float]) -> dict[str, Any]:
    return {"kind": name_start(arguments), "split": "validation", **start}


def _measure_start(
    run: Run, model: SiglipClassifier | ContrastiveSiglip
) -> dict[str, float] | None:
    """Measure a model that classifies before its first step."""
    if not has_measured_start(run.arguments.options):
        return None
    validation = run.data.splits["validation"]
    start = measure_start(fold_model(model), run.processor, validation, run.output_dir, run.passes)
    if PartialState().is_main_process:
        kind = name_start(run.arguments)
        print(f"before the first step: {kind} validation accuracy {start['accuracy']:.2%}")
    return start


def _fit_on_features(run: Run, model: Any, fit: FitHead | None) -> TrainedModel:
    """Fit the head on features of the frozen encoder instead of training it step by step."""
    if PartialState().is_main_process:
        print("The encoder is frozen: each image is encoded once, and the head fits the features.")
    training, began = run.arguments.training, time.perf_counter()
    if fit is None:
        fitted = fit_head(model, run.processor, run.data, run.arguments.data, training)
    else:
        fitted = fit(model, run.processor, run.data)
    facts = {
        "steps": 0,
        "seconds": time.perf_counter() - began,
        "processes": PartialState().num_processes,
        "precision": "bf16" if training.bf16 else "no",
    }
    return TrainedModel(fitted.model, None, facts, fitted.facts)


def _train(
    run: Run, model: SiglipClassifier | ContrastiveSiglip, checkpoint: str | None
) -> TrainedModel:
    trainer, outcome = train_to_the_end(
        run.arguments, run.data, model, run.processor, checkpoint, trackers=run.trackers
    )
    trainer.finish()
    return TrainedModel(
        gather_model(trainer.accelerator.unwrap_model(trainer.model)),
        trainer.state.log_history,
        describe_training(trainer, outcome.metrics),
        trainer=trainer,
    )


def _save_model(run: Run, trained: TrainedModel) -> dict[str, Any] | None:
    """Save the model as one ordinary classifier; return what the ensemble with the start was."""
    training, ensemble = run.arguments.training, None
    final = fold_model(trained.model)
    if training.wise_ft is not None:
        validation, alphas = run.data.splits["validation"], parse_wise_ft(training.wise_ft)
        ensemble = ensemble_with_start(
            final, run.processor, validation, run.output_dir, alphas, run.passes
        )
    if PartialState().is_main_process:
        if has_adapters(trained.model):
            with atomic_directory(run.output_dir / ADAPTER_DIR) as directory:
                save_adapter(trained.model, final, directory)
        with atomic_directory(run.output_dir / MODEL_DIR) as directory:
            final.save_pretrained(directory)
            run.processor.save_pretrained(directory)
    PartialState().wait_for_everyone()
    return ensemble


def _measure_and_write(
    run: Run,
    trained: TrainedModel,
    start: dict[str, float] | None,
    ensemble: dict[str, Any] | None,
) -> RunResult:
    """Evaluate the saved model on every split and write what was found."""
    arguments, data, model_dir = run.arguments, run.data, run.output_dir / MODEL_DIR
    # Read back: these are the figures of the files.
    final = load_saved_classifier(str(model_dir))
    splits = data.splits | {"train": draw_train_sample(arguments, data)}
    results = {
        name: evaluate_split(final, run.processor, splits[name], name, run.passes)
        for name in ("train", "validation", "test")
    }
    detector, separation = fit_ood_detector(
        final, run.processor, results["train"], results["validation"]
    )
    separation["test"] = measure_ood_detector(detector, final, run.processor, results["test"])
    history = build_history(
        list_final_point(results) if trained.log is None else trained.log, start
    )
    # Before the run counts as finished: if it is killed here, this is repeated.
    seed = arguments.training.seed
    run.trackers.finish(lambda: collect_results(results, data, seed, run.output_dir))
    if PartialState().is_main_process:
        detector.save(model_dir)
        fit_and_save_temperature(model_dir, results["validation"], final.config.activation)
        facts = {
            **describe_run(arguments, data, final),
            "training": {"seed": seed, **trained.training},
            **trained.facts,
            "start": start and _describe_start(arguments, start),
            "wise_ft": ensemble,
            "open_set": separation,
        }
        write_results(run.output_dir, results=results, history=history, data=data, facts=facts)
        if trained.trainer is not None:
            trained.trainer.remove_surplus_checkpoints()
    PartialState().wait_for_everyone()
    metrics = {name: list_metrics(result) for name, result in results.items()}
    notes = describe_choice(trained.training, ensemble)
    return RunResult(metrics, history, run.output_dir, data.description, notes)


def train_to_the_end(
    arguments: RunArguments,
    data: ClassificationData,
    model: SiglipClassifier | ContrastiveSiglip,
    processor: Any,
    checkpoint: str | None,
    prepare: Callable[[SiglipTrainer], None] | None = None,
    trackers: Trackers | None = None,
) -> tuple[SiglipTrainer, TrainOutput]:
    """Train, and if memory runs out train again with a smaller batch, as the arguments allow.

    Args:
        arguments: Of the run.
        data: All splits.
        model: As :func:`build_model` returns it.
        processor: Its image processor.
        checkpoint: Resume from this one.
        prepare: Called with every Trainer before it trains.
        trackers: Open trackers.
    """
    while True:
        trainer = build_trainer(arguments, data, model, processor, trackers)
        if prepare is not None:
            prepare(trainer)
        try:
            return trainer, trainer.train(resume_from_checkpoint=checkpoint)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # The error is gone by here, and with it the frames that held the batch's memory.
        del trainer
        training = shrink_batch(arguments.training, PartialState().num_processes)
        arguments = dataclasses.replace(arguments, training=training)
        logger.warning(
            "Memory ran out; continuing with --per_device_train_batch_size %d and "
            "--gradient_accumulation_steps %d.",
            training.per_device_train_batch_size,
            training.gradient_accumulation_steps,
        )
        # From the beginning or the newest checkpoint: the step that failed left nothing behind.
        set_seed(training.seed)
        model = build_model(arguments, data, processor)
        checkpoint = find_checkpoint(Path(str(training.output_dir)))
