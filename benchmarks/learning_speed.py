"""What the recipe and the usual script learn from the photographs in the same processor time.

    python -m benchmarks.learning_speed --core_seconds 1300

The recipe of configs/nano_64px.yaml, as it is and with other settings for few epochs, against the
image-classification example of transformers: the same checkpoint, batch and augmentation, AdamW, a
linear schedule, and that of three learning rates with the highest accuracy on validation after a
quarter of the time. Each runs in one thread, for as many steps as the time allows by the first few.
Writes learning_speed_cpu.json and .md.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import SiglipForImageClassification, set_seed

from benchmarks.harness import REPOSITORY
from benchmarks.report import format_table, write_report
from benchmarks.training_arms import TrainingJob, build_usual
from siglip_flowers.commands.train import COMMAND
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.data.pixels.tensors import PixelDataset, PixelNormalizer, read_form
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.metrics.statistics import paired_bootstrap
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.training.build import RunArguments, build_model
from siglip_flowers.training.trainer import SiglipTrainer

CONFIG = REPOSITORY / "configs" / "nano_64px.yaml"
RATES, TUNING, TIMED_STEPS, BATCH = (3e-4, 1e-3, 3e-3), 4, 10, 128
# The example of transformers trains and evaluates at the checkpoint's own size.
USUAL = {"image_size": None, "train_image_size": None}
# For few epochs: no mixing, no smoothing, a shorter average, and half of the patches for longer.
SHORT = {"mixup_alpha": 0.0, "label_smoothing_factor": 0.0, "ema": 0.98, "patch_drop_until": 0.8}


def prepare(steps: int, directory: str, **changes: Any) -> TrainingJob:
    """Read the configuration, changed, and the photographs for a training of so many steps."""
    quiet = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    more = {"max_steps": steps, "output_dir": directory, "report_to": ["none"], **quiet, **changes}
    data, model, options, augmentation, *_ = COMMAND.build(more, CONFIG)
    arguments = RunArguments(data, augmentation, model, SiglipTrainingArguments(**vars(options)))
    processor = load_image_processor(model.model_name_or_path, model.image_size)
    return TrainingJob(arguments, load_data(data), processor, 0, steps)


def train(job: TrainingJob, rate: float | None) -> tuple[Any, float]:
    """Train the recipe, or the usual script at a rate; return the model and processor seconds."""
    set_seed(job.arguments.training.seed)
    checkpoint: Any = job.arguments.model.model_name_or_path
    if rate is None:
        model = build_model(job.arguments, job.data, job.processor)
        trainer = SiglipTrainer(job.arguments, job.data, model, job.processor)
    else:
        job.arguments.training.learning_rate = rate
        more = {"num_labels": len(job.data.class_names), "attn_implementation": "eager"}
        model = SiglipForImageClassification.from_pretrained(checkpoint, **more)
        trainer = build_usual(job, model)
    began = time.process_time()
    trainer.train()
    seconds = time.process_time() - began
    if rate is None:
        trainer.finish()
    return trainer.model.eval(), seconds


@torch.no_grad()
def classify(model: Any, job: TrainingJob, split: str) -> np.ndarray:
    """Return which images of a split are classified correctly (N,) bool."""
    images = PixelDataset(job.data.splits[split], read_form(job.processor))
    normalize, correct = PixelNormalizer(job.processor), []
    for rows in torch.arange(len(images)).split(BATCH):
        batch = images.__getitems__(rows.tolist())
        logits = model(pixel_values=normalize(batch["pixel_values"])).logits
        correct.append(logits.argmax(dim=1) == batch["labels"])
    return torch.cat(correct).numpy()


def main() -> None:
    """Choose the rate of the usual script, train both, and compare them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--core_seconds", type=float, default=1300)
    budget = parser.parse_args().core_seconds
    torch.set_num_threads(1)
    correct, rows, results = {}, [], {}
    with tempfile.TemporaryDirectory() as directory:

        def measure(name: str, rate: float | None, budget: float, **changes: Any) -> float:
            _, seconds = train(prepare(TIMED_STEPS, directory, **changes), rate)
            job = prepare(round(budget / seconds * TIMED_STEPS), directory, **changes)
            model, seconds = train(job, rate)
            found = {split: classify(model, job, split) for split in ("validation", "test")}
            accuracy = {split: float(right.mean()) for split, right in found.items()}
            results[name] = {"steps": job.steps, "processor_seconds": seconds, **accuracy}
            shown = (f"{100 * value:.1f}" for value in accuracy.values())
            rows.append([name, job.steps, round(seconds), *shown])
            print(rows[-1], flush=True)
            correct[name] = found["test"][None]
            return accuracy["validation"]

        def tune(rate: float) -> float:
            return measure(f"usual, {rate:g}", rate, budget / TUNING, **USUAL)

        best = max(RATES, key=tune)
        measure(f"usual script, {best:g}", best, budget, **USUAL)
        measure("recipe", None, budget)
        measure("recipe, short", None, budget, **SHORT)
    usual, _, ours = list(correct.values())[-3:]
    results["difference"] = asdict(paired_bootstrap(ours, usual))
    points = [100 * results["difference"][key] for key in ("difference", "low", "high")]
    table = format_table(("", "steps", "processor seconds", "validation, %", "test, %"), rows)
    table += "\n\nShort recipe minus usual, points: {:+.1f} ({:+.1f} to {:+.1f})".format(*points)
    print(table)
    facts = (torch.device("cpu"), f"python -m benchmarks.learning_speed --core_seconds {budget:g}")
    settings = {"config": CONFIG.name, "rates": RATES, "short": SHORT, "core_seconds": budget}
    write_report("learning_speed", *facts, settings, results, table)


if __name__ == "__main__":
    main()
