"""Do the runs of an experiment, in one process or several."""

import copy
import dataclasses
import functools
import shutil
import time
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import yaml
from filelock import FileLock, Timeout
from transformers import EvalPrediction, TrainerCallback, set_seed

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.files import write_text
from siglip_flowers.base.text import count
from siglip_flowers.config.parsing import Command
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.evaluation.predict import PassOptions, SplitResult, evaluate_split
from siglip_flowers.experiment.options import ExperimentArguments
from siglip_flowers.experiment.plan import Plan, Run
from siglip_flowers.experiment.records import (
    Record,
    list_figures,
    pack_test,
    read_curve,
    write_record,
)
from siglip_flowers.metrics.calibration import cross_fitted_nll
from siglip_flowers.model.adapters import fold_model
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.runtime.devices import count_workers, describe_device
from siglip_flowers.runtime.processes import run_workers
from siglip_flowers.training.attempts import train_to_the_end
from siglip_flowers.training.build import RunArguments, build_model, check_arguments
from siglip_flowers.training.callbacks import ProgressLines
from siglip_flowers.training.output import check_same_settings
from siglip_flowers.training.trainer import SiglipTrainer

SETTINGS_FILE = "experiment.yaml"
# May differ when an experiment is resumed.
FREE = ("workers", "output_dir", "parts", "commit")
# Images that a fast core trains and evaluates per second, of the small checkpoint at 64 pixels;
# finished runs tell how much slower this one is.
TRAINED, EVALUATED = 140.0, 400.0
# Shares of the steps: the rate rises, then is constant, then falls.
WARMUP, CONSTANT_UNTIL = 0.05, 0.8
# Runs that decide something are evaluated in this many last epochs only.
TUNING_EPOCHS = 3
WAIT_SECONDS = 5


# ---- Before the first run


def build_arguments(values: dict[str, Any]) -> RunArguments:
    """Return options as a run takes them."""
    kinds = tuple(get_type_hints(RunArguments).values())
    return RunArguments(*Command("", "", kinds).build(values))


def check_runs(options: ExperimentArguments) -> None:
    """Check every arm.

    Raises:
        InputError: Options, data or weights that are not there or do not fit together.
    """
    for arm, values in options.list_combinations():
        try:
            check_arguments(build_arguments(values))
        except InputError as error:
            reason = str(error).removeprefix("In the call: ")
            raise InputError(f"The arm {arm!r}: {reason}") from error


def claim_directory(options: ExperimentArguments) -> None:
    """Claim the output directory, or resume the same experiment in it.

    The settings beside the records name the commit of the code at the first start.

    Raises:
        InputError: It holds an experiment of another design.
    """
    path = options.directory / SETTINGS_FILE
    settings = {**dataclasses.asdict(options), "commit": describe_environment("")["commit"]}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    remedy = "or choose another --output_dir"
    check_same_settings(path, text, kind="experiment", free=FREE, remedy=remedy)
    if not path.is_file():
        write_text(path, text)


# ---- One run


def make_values(plan: Plan, run: Run) -> dict[str, Any]:
    """Return the options of ``train.py`` for a run.

    The seed decides the few-shot images, the initial weights and the order of the images, so that
    the runs of one seed are a pair whatever the arm. Evaluations are half an epoch apart, and the
    last one is of the last weights.
    """
    values = plan.get_options(run.arm)
    sizes = measure_splits(yaml.safe_dump(values))
    per_epoch = -(-sizes["train"] // sizes["step"])
    interval = max(1, per_epoch // 2)
    steps = run.epochs * per_epoch // interval * interval
    values |= {
        "learning_rate": run.rates.encoder,
        "head_learning_rate": run.rates.encoder * run.rates.factor,
        **dict.fromkeys(("seed", "shots_seed", "data_seed"), run.seed),
        "max_steps": steps,
        "warmup_steps": round(WARMUP * steps),
        "lr_scheduler_kwargs": {"num_decay_steps": steps - round(CONSTANT_UNTIL * steps)},
        "eval_steps": interval,
        "logging_steps": per_epoch,
        "output_dir": str(plan.options.directory / "work" / run.name),
    }
    if plan.is_tuning(run):
        # Whether it over-fits is measured on all training images.
        values["train_eval_samples"] = sizes["train"]
        values["eval_delay"] = max(0, steps - TUNING_EPOCHS * per_epoch + 1)
    return values


@functools.cache
def measure_splits(settings: str) -> dict[str, int]:
    """Return the number of images of each split, and ``step``, those of an optimizer step.

    settings: Options of train.py as YAML.
    """
    run = build_arguments(yaml.safe_load(settings))
    sizes = {name: len(rows) for name, rows in load_data(run.data).splits.items()}
    return {**sizes, "step": run.training.images_per_step}


class Watch(TrainerCallback):
    """Keeps a copy of the weights with the highest validation accuracy, and fits temperatures."""

    def __init__(self) -> None:
        self.best: SiglipClassifier | None = None
        self._accuracy = -1.0

    def attach(self, trainer: SiglipTrainer) -> None:
        """Watch a Trainer, and add the NLL at a fitted temperature to its metrics."""
        measure = trainer.compute_metrics
        assert measure is not None

        def measure_more(prediction: EvalPrediction) -> dict[str, float]:
            logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
            return {**measure(prediction), "fitted_nll": cross_fitted_nll(logits, labels)}

        trainer.compute_metrics = measure_more
        trainer.remove_callback(ProgressLines)
        trainer.add_callback(self)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Copy the weights of a new best."""
        accuracy = metrics.get("eval_validation_accuracy", -1.0)
        if accuracy > self._accuracy:
            self._accuracy, self.best = accuracy, copy.deepcopy(fold_model(model))


def train_and_measure(run: RunArguments, is_tuning: bool) -> Record:
    """Do a run and return its record; one that decides something does not see the test split."""
    check_arguments(run)
    options, training = run.model, run.training
    data = load_data(run.data)
    set_seed(training.seed)
    processor = load_image_processor(
        options.model_name_or_path, options.image_size, options.max_num_patches
    )
    model, watch, began = build_model(run, data, processor), Watch(), time.perf_counter()
    trainer = train_to_the_end(run, data, model, processor, None, prepare=watch.attach)
    curve = read_curve(trainer.state.log_history)
    facts = {
        "data": data.description,
        "validation_images": len(data.splits["validation"]),
        "precision": trainer.accelerator.mixed_precision,
        "seconds": round(time.perf_counter() - began, 1),
        "environment": describe_environment(describe_device(training.device)),
    }
    if is_tuning:
        return Record(facts, curve, {name: values[-1] for name, values in curve.items()})
    passes = PassOptions(training.per_device_eval_batch_size, run.data)

    def evaluate(classifier: Any) -> dict[str, SplitResult]:
        return {
            split: evaluate_split(classifier, processor, rows, split, passes)
            for split, rows in data.splits.items()
        }

    last = evaluate(fold_model(trainer.accelerator.unwrap_model(trainer.model)))
    best = list_figures(evaluate(watch.best))
    return Record(facts, curve, list_figures(last), best, **pack_test(last["test"]))


# ---- All runs


def execute_part(plan: Plan, part: str) -> None:
    """Do every unfinished run of a part, several at a time if there are workers.

    Raises:
        RunError: Some runs failed; the others were done.
    """
    if plan.list_part(part):
        print(describe_part(plan, part), flush=True)
    workers = count_workers(plan.options.workers)
    if workers == 1 and count_workers(None) == 1:
        do_runs(plan, part)
    else:
        run_workers(do_runs, [(plan, part)] * workers)
    left = plan.list_missing(part)
    if left:
        raise RunError(
            f"{count(len(left), 'run')} of the part {part} failed, first: {left[0]}. Fix the cause "
            "and repeat the command, which does only the missing runs."
        )


def describe_part(plan: Plan, part: str) -> str:
    """Return a line that says what is left of a part, and about how long it takes."""
    runs, left = plan.list_part(part), plan.list_missing(part)
    minutes = measure_slowness(plan) * sum(estimate_minutes(plan, run) for run in left)
    told = f"{part}: {len(runs) - len(left)} of {count(len(runs), 'run')} finished"
    if left:
        told += f", about {count(max(1, round(minutes)), 'core-minute')} left"
    # Their results decide on more of them.
    return f"{told}; more runs may follow" if left and part in ("tuning", "length") else told


def measure_slowness(plan: Plan) -> float:
    """Return how many times their estimate the finished tuning runs took, 1 if there are none."""
    found = [(run, plan.find(run)) for run in plan.list_part("tuning")]
    finished = [(run, record) for run, record in found if record is not None]
    expected = 60 * sum(estimate_minutes(plan, run) for run, _ in finished)
    taken = sum(record.facts["seconds"] for _, record in finished)
    return taken / expected if finished else 1.0


def estimate_minutes(plan: Plan, run: Run) -> float:
    """Return about how many minutes a core needs for a run."""
    sizes = measure_splits(yaml.safe_dump(plan.get_options(run.arm)))
    values = make_values(plan, run)
    evaluations = (values["max_steps"] - values.get("eval_delay", 0)) // values["eval_steps"] + 1
    sample = min(sizes["train"], values.get("train_eval_samples", sizes["train"]))
    images = evaluations * (sizes["validation"] + sample)
    if not plan.is_tuning(run):
        # The last and the best weights.
        images += 2 * (sizes["train"] + sizes["validation"] + sizes["test"])
    return float(run.epochs * sizes["train"] / TRAINED + images / EVALUATED) / 60


def do_runs(plan: Plan, part: str) -> None:
    """Do unfinished runs of a part that no other process does, until none is left.

    A process that has nothing to do waits: what others finish may decide on more runs.
    """
    failed: set[Run] = set()
    while True:
        left = [run for run in plan.list_missing(part) if run not in failed]
        if not left:
            return
        for run in left:
            try:
                do_run(plan, part, run)
                break
            except Timeout:
                continue
            except (InputError, RunError, OSError) as error:
                print(f"{part}: {run} failed: {error}", flush=True)
                failed.add(run)
        else:
            time.sleep(WAIT_SECONDS)


def do_run(plan: Plan, part: str, run: Run) -> None:
    """Do a run and write its record.

    Raises:
        Timeout: Another process does it.
        InputError, RunError: It failed.
    """
    values = make_values(plan, run)
    directory = Path(values["output_dir"])
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock", timeout=0):
        # It may have ended a moment ago.
        if plan.find(run) is not None:
            return
        try:
            record = train_and_measure(build_arguments(values), plan.is_tuning(run))
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        write_record(plan.locate(run), record)
    total = len(plan.list_part(part))
    print(
        f"{part} [{total - len(plan.list_missing(part))}/{total}] {run}: validation accuracy "
        f"{record.score:.2%} after {record.facts['seconds']:.0f} s",
        flush=True,
    )
