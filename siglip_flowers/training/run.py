"""One training run from start to finish: data, model, Trainer, test figures, images."""

import dataclasses
import logging
import time
from collections.abc import Callable
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
from siglip_flowers.data import ClassificationData, image_ids, load_data
from siglip_flowers.evaluation.features import FitHead, fit_head
from siglip_flowers.evaluation.fitting import (
    fit_and_save_temperature,
    fit_ood_detector,
    measure_ood_detector,
)
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
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
from siglip_flowers.training.history import build_history, list_final_point
from siglip_flowers.training.output import claim_output_dir, find_checkpoint
from siglip_flowers.training.report import describe_run, describe_training, write_results
from siglip_flowers.training.sharding import gather_model
from siglip_flowers.training.start import ensemble_with_start, measure_start
from siglip_flowers.training.tracked_results import collect_results, describe_facts
from siglip_flowers.training.trainer import SiglipTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves besides its files: metrics by split, the curve, and the data in a line."""

    metrics: dict[str, dict[str, float]]
    history: list[dict[str, float | None]]
    output_dir: Path
    description: str


@dataclass(frozen=True)
class TrainedModel:
    """A model after training, and how it was trained.

    Attributes:
        model: The weights to keep.
        log: The Trainer's log; None if there was no Trainer.
        training: For ``training`` in the metrics file.
        facts: For the metrics file besides.
    """

    model: SiglipClassifier
    log: list[dict[str, Any]] | None
    training: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


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
    trackers = build_trackers(arguments.training)
    try:
        result = _run_tracked(arguments, trackers, fit)
    except BaseException:
        trackers.close(failed=True)
        raise
    trackers.close(failed=False)
    return result


def _run_tracked(arguments: RunArguments, trackers: Trackers, fit: FitHead | None) -> RunResult:
    training = arguments.training
    assert training.output_dir is not None
    output_dir = Path(training.output_dir)
    eval_batch_size = training.per_device_eval_batch_size
    check_world(PartialState().num_processes)
    check_arguments(arguments)
    set_cpu_threads(training.cpu_threads)
    with training.main_process_first(desc="loading the data"):
        data = load_data(arguments.data)
    set_seed(training.seed)
    processor = load_image_processor(
        arguments.model.model_name_or_path,
        arguments.model.image_size,
        arguments.model.max_num_patches,
    )
    model = build_model(arguments, data, processor)
    check_free_disk(model, training)
    # Only now is anything written or an earlier run deleted: the data and the weights are good.
    # Machines share the directory: the first process of all goes first, not one of each machine.
    with training.main_process_first(local=False, desc="claiming the output directory"):
        checkpoint = claim_output_dir(
            output_dir,
            arguments.dump(),
            overwrite=training.overwrite_output_dir and PartialState().is_main_process,
            resume=training.resume == "auto",
            clear=PartialState().is_main_process,
        )
    if checkpoint is not None:
        trackers.load(Path(checkpoint))
    trackers.open(describe_facts(arguments, data))
    start: dict[str, float] | None = None
    if has_measured_start(arguments.options):
        start = measure_start(
            fold_model(model),
            processor,
            data.splits["validation"],
            output_dir,
            eval_batch_size,
            arguments.data,
        )
        if PartialState().is_main_process:
            kind = name_start(arguments)
            print(f"before the first step: {kind} validation accuracy {start['accuracy']:.2%}")
    if PartialState().is_main_process:
        ids = {name: image_ids(rows) for name, rows in data.splits.items()}
        write_json(output_dir / "splits.json", {"split_protocol": data.split_protocol, **ids})
    ensemble, trainer = None, None
    if fit is not None or fits_on_features(arguments):
        trained = _fit_on_features(fit, arguments, data, model, processor)
    else:
        trainer, outcome = train_to_the_end(
            arguments, data, model, processor, checkpoint, trackers=trackers
        )
        trainer.finish()
        trained = TrainedModel(
            gather_model(trainer.accelerator.unwrap_model(trainer.model)),
            trainer.state.log_history,
            describe_training(trainer, outcome.metrics),
        )
    final = fold_model(trained.model)
    if training.wise_ft is not None:
        ensemble = ensemble_with_start(
            final,
            processor,
            data.splits["validation"],
            output_dir,
            parse_wise_ft(training.wise_ft),
            eval_batch_size,
            arguments.data,
        )
    if PartialState().is_main_process:
        if has_adapters(trained.model):
            with atomic_directory(output_dir / ADAPTER_DIR) as directory:
                save_adapter(trained.model, final, directory)
        with atomic_directory(output_dir / MODEL_DIR) as directory:
            final.save_pretrained(directory)
            processor.save_pretrained(directory)
    PartialState().wait_for_everyone()
    # What is measured is what was saved, read back.
    final = load_saved_classifier(str(output_dir / MODEL_DIR))
    results = {
        name: evaluate_split(
            final,
            processor,
            rows,
            name,
            PassOptions(
                eval_batch_size,
                training.dataloader_num_workers or 0,
                data_arguments=arguments.data,
            ),
        )
        for name, rows in (
            ("train", draw_train_sample(arguments, data)),
            ("validation", data.splits["validation"]),
            ("test", data.splits["test"]),
        )
    }
    detector, separation = fit_ood_detector(
        final, processor, results["train"], results["validation"]
    )
    separation["test"] = measure_ood_detector(detector, final, processor, results["test"])
    history = build_history(
        list_final_point(results) if trained.log is None else trained.log, start
    )
    # Before the run counts as finished: what it is killed in the middle of is repeated then.
    trackers.finish(lambda: collect_results(results, data, training.seed, output_dir))
    if PartialState().is_main_process:
        detector.save(output_dir / MODEL_DIR)
        fit_and_save_temperature(
            output_dir / MODEL_DIR, results["validation"], final.config.activation
        )
        write_results(
            output_dir,
            results=results,
            history=history,
            data=data,
            facts={
                **describe_run(arguments, data, final),
                "training": {"seed": training.seed, **trained.training},
                **trained.facts,
                "start": start and {"kind": name_start(arguments), "split": "validation", **start},
                "wise_ft": ensemble,
                "open_set": separation,
            },
        )
        if trainer is not None:
            trainer.remove_surplus_checkpoints()
    PartialState().wait_for_everyone()
    metrics = {
        name: {"n": len(result.labels), **result.metrics} for name, result in results.items()
    }
    return RunResult(
        metrics=metrics, history=history, output_dir=output_dir, description=data.description
    )


def _fit_on_features(
    fit: FitHead | None,
    arguments: RunArguments,
    data: ClassificationData,
    model: Any,
    processor: Any,
) -> TrainedModel:
    """Fit the head on features of the frozen encoder instead of training it step by step."""
    if PartialState().is_main_process:
        print("The encoder is frozen: each image is encoded once, and the head fits the features.")
    began = time.perf_counter()
    if fit is None:
        fitted = fit_head(model, processor, data, arguments.data, arguments.training)
    else:
        fitted = fit(model, processor, data)
    training = {
        "steps": 0,
        "seconds": time.perf_counter() - began,
        "processes": PartialState().num_processes,
        "precision": "bf16" if arguments.training.bf16 else "no",
    }
    return TrainedModel(fitted.model, None, training, fitted.facts)


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

    prepare: called with every Trainer before it trains. trackers: open ones.
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
