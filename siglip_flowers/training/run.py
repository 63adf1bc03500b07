"""One training run from start to finish: data, model, Trainer, test figures, images."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers import set_seed

from siglip_flowers.base.files import (
    ADAPTER_DIR,
    CHECKPOINT_DIR,
    MODEL_DIR,
    SPLITS_FILE,
    START_DIR,
    atomic_directory,
    read_json,
    reading,
    write_json,
)
from siglip_flowers.config.rules import has_measured_start, needs_text_tower
from siglip_flowers.config.training_options import parse_wise_ft
from siglip_flowers.data.inspection import check_images
from siglip_flowers.data.sources.load import download_data, open_data
from siglip_flowers.data.splits import ClassificationData, check_unchanged, list_ids
from siglip_flowers.evaluation.features import FitHead, fit_head
from siglip_flowers.evaluation.fitting import (
    fit_and_save_temperature,
    fit_ood_detector,
    measure_ood_detector,
)
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.evaluation.run import describe_choice, list_metrics
from siglip_flowers.model.adapters import fold_model, has_adapters, save_adapter
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.contrastive import ContrastiveSiglip
from siglip_flowers.model.ensemble import interpolate_weights
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.model.text_head import check_prompts, read_prompts
from siglip_flowers.runtime.devices import set_cpu_threads
from siglip_flowers.runtime.processes import check_world
from siglip_flowers.tracking.kinds import build_trackers
from siglip_flowers.tracking.trackers import Trackers
from siglip_flowers.training.attempts import train_to_the_end
from siglip_flowers.training.build import (
    RunArguments,
    build_model,
    check_arguments,
    draw_train_sample,
    fits_on_features,
    list_pixel_forms,
)
from siglip_flowers.training.checkpoints import check_free_disk, rotate_checkpoints
from siglip_flowers.training.output import hold_output_dir
from siglip_flowers.training.results import (
    build_history,
    collect_results,
    describe_facts,
    describe_plan,
    describe_run,
    describe_training,
    list_examples,
    list_final_point,
    write_results,
)
from siglip_flowers.training.sharding import gather_model

# Of a run whose model classifies before its first step: that model and its validation metrics.
START_METRICS = "metrics.json"
REMOVE_START = "Remove its directory, and the same command measures the start again"


@dataclass(frozen=True)
class RunResult:
    """What a run returns besides its files.

    Attributes:
        metrics: By split.
        output_dir: Where the files are.
        description: The data in a line.
        notes: Which checkpoint was chosen, and by what, in sentences.
    """

    metrics: dict[str, dict[str, float]]
    output_dir: Path
    description: str
    notes: list[str]


@dataclass(frozen=True)
class TrainedModel:
    """A model after training, and how it was trained.

    Attributes:
        model: The weights to keep.
        facts: For the metrics file; ``training`` is how it was trained.
        log: The Trainer's log; empty if the head was fitted on features.
        best_checkpoint: That of the best evaluation, if there is one.
    """

    model: SiglipClassifier
    facts: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)
    best_checkpoint: str | None = None


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
        arguments = self.arguments
        return PassOptions(arguments.training.per_device_eval_batch_size, arguments.data)


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
    # A setting of the whole process, changed only on request.
    if training.cpu_threads is not None:
        set_cpu_threads(training.cpu_threads)
    download_data(arguments.data)
    options = arguments.model
    processor = load_image_processor(
        options.model_name_or_path, options.image_size, options.max_num_patches
    )
    with training.main_process_first(desc="loading the data"):
        data = open_data(arguments.data)
        if needs_text_tower(arguments.options):
            prompts = read_prompts(data.class_names, options)
            check_prompts(options.model_name_or_path, data.class_names, prompts)
        forms = list_pixel_forms(arguments, processor)
        data = check_images(data, arguments.data, forms)
    set_seed(training.seed)
    model = build_model(arguments, data, processor)
    if fit is None and fits_on_features(arguments):
        fit = fit_head
    if fit is None:
        check_free_disk(model, training)
    run = Run(arguments, data, processor, build_trackers(training.report_to))
    # Only now is anything written or an earlier run deleted: the data and the weights are good.
    claim = hold_output_dir(
        run.output_dir,
        arguments.dump(),
        overwrite=training.overwrite_output_dir,
        resume=training.resume == "auto",
    )
    with claim as checkpoint, run.trackers:
        step = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
        _open(run, checkpoint, step)
        if PartialState().is_main_process:
            plan = describe_plan(arguments, data, model, step, forms, run.trackers.names)
            print("\n".join(plan), flush=True)
        start = _measure_start(run, model)
        if fit is None:
            trained = _train(run, model, checkpoint)
        else:
            trained = _fit_on_features(run, model, fit)
        ensemble = _save_model(run, trained)
        return _measure_and_write(run, trained, start, ensemble)


def _open(run: Run, checkpoint: str | None, step: int) -> None:
    """Open the trackers, those of a resumed run again, and write the images of each split."""
    if checkpoint is not None:
        check_unchanged(run.output_dir, run.data)
        run.trackers.load(Path(checkpoint))
    run.trackers.open(describe_facts(run.arguments, run.data, step))
    if PartialState().is_main_process:
        write_json(run.output_dir / SPLITS_FILE, list_ids(run.data))


def _measure_start(run: Run, model: SiglipClassifier | ContrastiveSiglip) -> dict[str, Any] | None:
    """Measure and keep a model that classifies before its first step; a resumed run finds both."""
    if not has_measured_start(run.arguments.options):
        return None
    directory = run.output_dir / CHECKPOINT_DIR / START_DIR
    if not (directory / START_METRICS).is_file():
        folded, validation = fold_model(model), run.data.splits["validation"]
        result = evaluate_split(folded, run.processor, validation, "the start", run.passes)
        if PartialState().is_main_process:
            with atomic_directory(directory) as temporary:
                folded.save_pretrained(temporary)
                write_json(temporary / START_METRICS, result.metrics)
    PartialState().wait_for_everyone()
    with reading(directory / START_METRICS, REMOVE_START):
        metrics = read_json(directory / START_METRICS)
        accuracy = f"{metrics['accuracy']:.2%}"
    kind = "zero-shot" if needs_text_tower(run.arguments.options) else "linear-probe"
    if PartialState().is_main_process:
        print(f"before the first step: {kind} validation accuracy {accuracy}")
    return {"kind": kind, "split": "validation", **metrics}


def _fit_on_features(run: Run, model: Any, fit: FitHead) -> TrainedModel:
    """Fit the head on features of the frozen encoder instead of training it step by step."""
    if PartialState().is_main_process:
        print("The encoder is frozen: the head is fitted on features computed once.")
    training, began = run.arguments.training, time.perf_counter()
    fitted = fit(model, run.processor, run.data, run.arguments.data, training)
    facts = {
        "seed": training.seed,
        "steps": 0,
        "seconds": time.perf_counter() - began,
        "processes": PartialState().num_processes,
        "precision": "bf16" if training.bf16 else "fp16" if training.fp16 else "no",
    }
    return TrainedModel(fitted.model, {"training": facts, **fitted.facts})


def _train(
    run: Run, model: SiglipClassifier | ContrastiveSiglip, checkpoint: str | None
) -> TrainedModel:
    trainer = train_to_the_end(
        *(run.arguments, run.data, model, run.processor, checkpoint),
        prepare=lambda trainer: trainer.add_part(run.trackers),
    )
    seconds = trainer.throughput.total_seconds()
    trainer.finish()
    return TrainedModel(
        gather_model(trainer.accelerator.unwrap_model(trainer.model)),
        {"training": describe_training(trainer, seconds)},
        trainer.state.log_history,
        trainer.state.best_model_checkpoint,
    )


def _save_model(run: Run, trained: TrainedModel) -> dict[str, Any] | None:
    """Save the model as one ordinary classifier; return what the ensemble with the start was."""
    final, wise_ft = fold_model(trained.model), run.arguments.training.wise_ft
    ensemble = None if wise_ft is None else _mix_with_start(run, final, parse_wise_ft(wise_ft))
    if PartialState().is_main_process:
        if has_adapters(trained.model):
            with atomic_directory(run.output_dir / ADAPTER_DIR) as directory:
                save_adapter(trained.model, final, directory)
        with atomic_directory(run.output_dir / MODEL_DIR) as directory:
            final.to(getattr(torch, run.arguments.training.save_dtype))
            final.save_pretrained(directory)
            run.processor.save_pretrained(directory)
    PartialState().wait_for_everyone()
    return ensemble


def _mix_with_start(run: Run, model: SiglipClassifier, alphas: list[float]) -> dict[str, Any]:
    """Interpolate the model's weights with the start's, in place, at the best of the alphas.

    Best is the highest accuracy on the validation split; among equals, the alpha nearest to the
    tuned model.

    Returns:
        ``alpha`` and its ``validation_accuracy``, and under ``sweep`` both for each alpha.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT).
    """
    path = run.output_dir / CHECKPOINT_DIR / START_DIR / "model.safetensors"
    tuned = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    with reading(path, REMOVE_START):
        start = load_file(path)
        # All weights must be there, in the same shapes.
        model.load_state_dict(start)
    validation, rows = run.data.splits["validation"], []
    for alpha in alphas:
        model.load_state_dict(interpolate_weights(start, tuned, alpha))
        result = evaluate_split(model, run.processor, validation, f"alpha {alpha:g}", run.passes)
        rows.append({"alpha": alpha, "validation_accuracy": result.metrics["accuracy"]})
    best = max(rows, key=lambda row: (row["validation_accuracy"], row["alpha"]))
    model.load_state_dict(interpolate_weights(start, tuned, best["alpha"]))
    return {**best, "sweep": rows}


def _measure_and_write(
    run: Run, trained: TrainedModel, start: dict[str, Any] | None, ensemble: dict[str, Any] | None
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
    history = build_history(trained.log or list_final_point(results), start)
    if PartialState().is_main_process:
        examples = list_examples(results["test"], data, arguments.training.seed)
        # Before the run counts as finished: if it is killed here, this is repeated.
        run.trackers.finish(lambda: collect_results(results, data.class_names, examples))
        detector.save(model_dir)
        fit_and_save_temperature(model_dir, results["validation"], final.config.activation)
        facts = {
            **describe_run(arguments, data, final),
            **trained.facts,
            "start": start,
            "wise_ft": ensemble,
            "open_set": separation,
        }
        write_results(run.output_dir, results, history, data, examples, facts)
        # Not earlier: until now a run that is killed needs the newest checkpoint.
        rotate_checkpoints(
            run.output_dir / CHECKPOINT_DIR,
            arguments.training.save_total_limit,
            trained.best_checkpoint,
            keep_newest=False,
        )
    PartialState().wait_for_everyone()
    metrics = {name: list_metrics(result) for name, result in results.items()}
    notes = describe_choice(trained.facts["training"], ensemble)
    return RunResult(metrics, run.output_dir, data.description, notes)
