"""One training run from start to finish: data, model, Trainer, test figures, images."""

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_utils import TrainOutput

from siglip_flowers.base.files import atomic_directory, write_json
from siglip_flowers.base.run_dir import ADAPTER_DIR, MODEL_DIR
from siglip_flowers.config import parse_wise_ft
from siglip_flowers.data import ClassificationData, image_ids, load_data
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
from siglip_flowers.probe.fit import encoder_arguments, fit_probe, fits_on_features
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
    has_measured_start,
    name_start,
)
from siglip_flowers.training.compute import set_cpu_threads, shrink_batch
from siglip_flowers.training.history import build_history
from siglip_flowers.training.output import claim_output_dir, find_checkpoint
from siglip_flowers.training.report import describe_run, write_results
from siglip_flowers.training.sharding import check_sharding, gather_model
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


def run_training(arguments: RunArguments) -> RunResult:
    """Train, keep the best weights, evaluate them and write everything to the output directory.

    Raises:
        InputError: The configuration cannot be carried out; nothing was written.
        RunError: Something failed on the way.
    """
    trackers = build_trackers(arguments.training)
    try:
        result = _run_tracked(arguments, trackers)
    except BaseException:
        trackers.close(failed=True)
        raise
    trackers.close(failed=False)
    return result


def _run_tracked(arguments: RunArguments, trackers: Trackers) -> RunResult:
    training = arguments.training
    assert training.output_dir is not None
    output_dir = Path(training.output_dir)
    eval_batch_size = training.per_device_eval_batch_size
    check_world(PartialState().num_processes)
    check_arguments(arguments)
    on_features = fits_on_features(arguments)
    check_sharding(arguments.model, training, on_features=on_features)
    set_cpu_threads(training.cpu_threads)
    with training.main_process_first(desc="loading the data"):
        data = load_data(arguments.data)
    set_seed(training.seed)
    processor = load_image_processor(
        arguments.model.model_name_or_path,
        arguments.model.image_size,
        arguments.model.max_num_patches,
    )
    model_arguments = encoder_arguments(arguments) if on_features else arguments
    model = build_model(model_arguments, data, processor)
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
    if has_measured_start(arguments) and not on_features:
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
    trainer: SiglipTrainer
    ensemble, facts = None, {}
    if on_features:
        assert isinstance(model, SiglipClassifier)
        probe = fit_probe(arguments, data, model, processor, checkpoint, trackers)
        trainer, figures, trained = probe.trainer, probe.outcome, probe.model
        start, facts = probe.start, probe.facts
    else:
        trainer, outcome = train_to_the_end(
            arguments, data, model, processor, checkpoint, trackers=trackers
        )
        trainer.finish()
        figures = outcome.metrics
        trained = gather_model(trainer.accelerator.unwrap_model(trainer.model))
    final = fold_model(trained)
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
    if trainer.is_world_process_zero():
        if has_adapters(trained):
            with atomic_directory(output_dir / ADAPTER_DIR) as directory:
                save_adapter(trained, final, directory)
        with atomic_directory(output_dir / MODEL_DIR) as directory:
            final.save_pretrained(directory)
            processor.save_pretrained(directory)
    trainer.accelerator.wait_for_everyone()
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
    history = build_history(trainer.state.log_history, start)
    # Before the run counts as finished: what it is killed in the middle of is repeated then.
    trackers.finish(lambda: collect_results(results, data, training.seed, output_dir))
    if trainer.is_world_process_zero():
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
                **describe_run(arguments, data, final, trainer, figures),
                **facts,
                "start": start and {"kind": name_start(arguments), "split": "validation", **start},
                "wise_ft": ensemble,
                "open_set": separation,
            },
        )
        trainer.remove_surplus_checkpoints()
    trainer.accelerator.wait_for_everyone()
    metrics = {
        name: {"n": len(result.labels), **result.metrics} for name, result in results.items()
    }
    return RunResult(
        metrics=metrics, history=history, output_dir=output_dir, description=data.description
    )


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
