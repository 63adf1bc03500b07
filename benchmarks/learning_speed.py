"""What a recipe and the usual script learn in the same processor time.

    python -m benchmarks.learning_speed --core_seconds 1300 7200
    python -m benchmarks.learning_speed --config configs/demo.yaml --core_seconds 550

The recipe of a configuration against the image-classification example of transformers: the same
checkpoint, batch and augmentation, AdamW, a linear schedule, and that of three learning rates with
the highest accuracy on validation after a quarter of the time, at most 900 seconds. Each runs in
one thread, for as many steps as the time allows by the first few. Finished runs are in
results/learning_speed: a later call continues. Writes learning_speed_cpu.json and .md, or
learning_speed_demo_cpu.json and .md.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import SiglipForImageClassification, set_seed

from benchmarks.harness import REPOSITORY
from benchmarks.report import RESULTS, format_difference, format_table, write_report
from benchmarks.training_arms import TrainingJob, build_usual, build_usual_model
from siglip_flowers.base.files import read_json, write_json
from siglip_flowers.commands.train import COMMAND
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.pixels.tensors import PixelDataset, PixelNormalizer, read_form
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.metrics.statistics import paired_bootstrap
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.training.build import RunArguments, build_model
from siglip_flowers.training.trainer import SiglipTrainer

CONFIG, RUNS = REPOSITORY / "configs" / "nano_64px.yaml", RESULTS / "learning_speed"
SPLITS = ("validation", "test")
RATES, TIMED_STEPS, BATCH = (3e-4, 1e-3, 3e-3), 10, 128
# The example of transformers trains and evaluates at the checkpoint's own size.
USUAL = {"image_size": None, "train_image_size": None}


def prepare(config: Path, steps: int, directory: str, **changes: Any) -> TrainingJob:
    """Read a configuration, changed, and its images for a training of so many steps."""
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    more = {"max_steps": steps, "output_dir": directory, "report_to": ["none"], **quiet, **changes}
    data, model, options, augmentation, *_ = COMMAND.build(more, config)
    arguments = RunArguments(data, augmentation, model, SiglipTrainingArguments(**vars(options)))
    processor = load_image_processor(model.model_name_or_path, model.image_size)
    return TrainingJob(arguments, load_data(data), processor, 0, steps)


def train(job: TrainingJob, rate: float | None, checkpoint: str | None = None) -> tuple[Any, float]:
    """Train the recipe, or the usual script at a rate; return the model and processor seconds.

    A checkpoint is resumed.
    """
    set_seed(job.arguments.training.seed)
    pretrained: Any = job.arguments.model.model_name_or_path
    if rate is None:
        model = build_model(job.arguments, job.data, job.processor)
        trainer = SiglipTrainer(job.arguments, job.data, model, job.processor)
    else:
        job.arguments.training.learning_rate = rate
        if job.arguments.model.from_scratch:
            model = build_usual_model(job)
        else:
            more = {"num_labels": len(job.data.class_names), "attn_implementation": "eager"}
            model = SiglipForImageClassification.from_pretrained(pretrained, **more)
        trainer = build_usual(job, model)
    began = time.process_time()
    trainer.train(checkpoint)
    seconds = time.process_time() - began
    if rate is None:
        trainer.finish()
    return trainer.model.eval(), seconds


@torch.no_grad()
def classify(model: Any, job: TrainingJob, split: str) -> NDArray:
    """Return which images of a split are classified correctly (N,) bool."""
    images = PixelDataset(job.data.splits[split], read_form(job.processor))
    normalize, correct = PixelNormalizer(job.processor), []
    for rows in torch.arange(len(images)).split(BATCH):
        batch = images.__getitems__(rows.tolist())
        logits = model(pixel_values=normalize(batch["pixel_values"])).logits
        correct.append(logits.argmax(dim=1) == batch["labels"])
    return torch.cat(correct).numpy()


def pack(correct: NDArray) -> str:
    """Return which images are classified correctly (N,) as a string of 0 and 1."""
    return "".join(str(int(right)) for right in correct)


def unpack(digits: str) -> NDArray:
    """Return which images are classified correctly (N,) bool."""
    return np.array([digit == "1" for digit in digits])


def measure(
    config: Path, name: str, rate: float | None, seconds: float, tuning: bool = False
) -> dict[str, Any]:
    """Train for the processor time, unless it was done before; return what came of it."""
    path = RUNS / config.stem / f"{name}_{seconds:g}.json"
    if not path.exists():
        changes = {} if rate is None else USUAL
        with tempfile.TemporaryDirectory() as directory:
            _, timed = train(prepare(config, TIMED_STEPS, directory, **changes), rate)
            job = prepare(config, round(seconds / timed * TIMED_STEPS), directory, **changes)
            model, spent = train(job, rate)
            found = {"steps": job.steps, "processor_seconds": spent}
            found["validation"] = float(classify(model, job, "validation").mean())
            if not tuning:
                found["test"] = pack(classify(model, job, "test"))
        write_json(path, found)
    return read_json(path)


def main() -> None:
    """Choose the rate of the usual script, train both, and compare them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--core_seconds", type=float, nargs="+", default=[1300, 7200])
    options = parser.parse_args()
    config, report, given = options.config, "learning_speed", ""
    if config.stem != CONFIG.stem:
        report, given = f"learning_speed_{config.stem}", f"--config configs/{config.name} "
    torch.set_num_threads(1)
    rows, results = [], {}
    for budget in options.core_seconds:
        tuning = min(budget / 4, 900)
        tried = {rate: measure(config, f"usual_{rate:g}", rate, tuning, True) for rate in RATES}
        best = max(RATES, key=lambda rate: tried[rate]["validation"])
        found = {f"usual script, {rate:g}": run for rate, run in tried.items()}
        found["usual script"] = measure(config, f"usual_{best:g}", best, budget)
        found["recipe"] = measure(config, "recipe", None, budget)
        right = {name: unpack(found[name]["test"])[None] for name in ("recipe", "usual script")}
        paired = asdict(paired_bootstrap(right["recipe"], right["usual script"]))
        for name, run in found.items():
            if name in right:
                run["test"] = float(right[name].mean())
            shares = [f"{100 * run[split]:.1f}" if split in run else None for split in SPLITS]
            rows.append([name, run["steps"], round(run["processor_seconds"]), *shares])
        rows.append(["difference", *[None] * 3, format_difference(paired)])
        results[f"{budget:g}"] = {"rate": best, **found, "difference": paired}
    columns = ("", "steps", "processor seconds", "validation, %", "test, %")
    table = format_table(columns, rows)
    print(table)
    command = f"python -m benchmarks.learning_speed {given}--core_seconds {' '.join(results)}"
    settings = {"config": config.name, "rates": RATES}
    write_report(report, torch.device("cpu"), command, settings, results, table)


if __name__ == "__main__":
    main()
