"""One training run from start to finish: data, model, Trainer, test figures, pictures."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from siglip_flowers.config import parse_wise_ft
from siglip_flowers.data import image_ids, load_flowers
from siglip_flowers.evaluation.predict import evaluate_split
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import load_image_processor, load_saved_classifier
from siglip_flowers.records import atomic_directory, write_json
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
from siglip_flowers.training.history import build_history
from siglip_flowers.training.output import MODEL_DIR, claim_output_dir
from siglip_flowers.training.report import describe_run, write_results
from siglip_flowers.training.start import ensemble_with_start, measure_start


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
    training = arguments.training
    assert training.output_dir is not None
    output_dir = Path(training.output_dir)
    eval_batch_size = training.per_device_eval_batch_size
    check_arguments(arguments)
    with training.main_process_first(desc="loading the data"):
        data = load_flowers(arguments.data)
    set_seed(training.seed)
    processor = load_image_processor(arguments.model.model_name_or_path, arguments.model.image_size)
    model = build_model(arguments, data, processor)
    check_free_disk(model, training)
    # Only now is anything written or an earlier run deleted: the data and the weights are good.
    with training.main_process_first(desc="claiming the output directory"):
        checkpoint = claim_output_dir(
            output_dir,
            arguments.dump(),
            overwrite=training.overwrite_output_dir and PartialState().is_main_process,
        )
    start: dict[str, float] | None = None
    if has_measured_start(arguments):
        start = measure_start(
            model.fold(), processor, data.splits["validation"], output_dir, eval_batch_size
        )
        if PartialState().is_main_process:
            kind = name_start(arguments)
            print(f"before the first step: {kind} validation accuracy {start['accuracy']:.2%}")
    trainer = build_trainer(arguments, data, model, processor)
    if trainer.is_world_process_zero():
        ids = {name: image_ids(rows) for name, rows in data.splits.items()}
        write_json(output_dir / "splits.json", {"split_protocol": data.split_protocol, **ids})
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.finish()
    final: SiglipClassifier = trainer.accelerator.unwrap_model(trainer.model).fold()
    ensemble = None
    if training.wise_ft is not None:
        ensemble = ensemble_with_start(
            final,
            processor,
            data.splits["validation"],
            output_dir,
            parse_wise_ft(training.wise_ft),
            eval_batch_size,
        )
    if trainer.is_world_process_zero():
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
            batch_size=eval_batch_size,
            num_workers=training.dataloader_num_workers or 0,
        )
        for name, rows in (
            ("train", draw_train_sample(arguments, data)),
            ("validation", data.splits["validation"]),
            ("test", data.splits["test"]),
        )
    }
    history = build_history(trainer.state.log_history, start)
    if trainer.is_world_process_zero():
        write_results(
            output_dir,
            results=results,
            history=history,
            data=data,
            facts={
                **describe_run(arguments, data, final, trainer, outcome.metrics),
                "start": start and {"kind": name_start(arguments), "split": "validation", **start},
                "wise_ft": ensemble,
            },
        )
    trainer.accelerator.wait_for_everyone()
    metrics = {
        name: {"n": len(result.labels), **result.metrics} for name, result in results.items()
    }
    return RunResult(
        metrics=metrics, history=history, output_dir=output_dir, description=data.description
    )
