"""A 50-setting linear probe: encode once and fit all heads at once, or train setting by setting.

    python -m benchmarks.linear_probe --preset cpu
    python -m benchmarks.linear_probe --preset gpu

The package's probe is measured whole, with an empty cache: decoding, encoding every image of the
three splits, the fit of 10 learning rates times 5 weight decays with an evaluation of all in every
epoch, and k-NN. The others would take hours: of each, some epochs of one setting are measured,
training and evaluation, and their median multiplied by epochs and settings; the table says so.
Then each runs by itself for its peak memory, the others for one epoch.
Writes ``benchmarks/results/linear_probe_<device>.json``, ``.md`` and ``.png``.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks import usual_script
from benchmarks.harness import (
    MemoryMeter,
    Stopwatch,
    get_own_bytes,
    list_memory_options,
    measure_memory,
    name_device,
    run_benchmark,
    synchronize,
)
from benchmarks.images import SourceOptions, fill_sources
from benchmarks.report import (
    COLORS,
    RESULTS,
    format_bytes,
    format_cell,
    format_table,
    make_axes,
    write_report,
)
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    ProbeArguments,
    SiglipTrainingArguments,
    check_choice,
    check_positive,
)
from siglip_flowers.data import ClassificationData, load_data
from siglip_flowers.model.loading import (
    load_checkpoint_config,
    load_image_processor,
    vision_config_of,
)
from siglip_flowers.probe.fit import ProbeResult, encoder_arguments, fit_probe
from siglip_flowers.training.build import RunArguments, build_model, build_trainer

MODULE = "benchmarks.linear_probe"
LEARNING_RATES = tuple(float(rate) for rate in np.logspace(-4, -1, 10).round(6))
WEIGHT_DECAYS = (0.0, 0.001, 0.01, 0.05, 0.2)
LABELS = {
    "ours": "siglip_flowers: encode once, all settings at once",
    "steps": "siglip_flowers --feature_cache false, setting by setting",
    "usual": "usual script, setting by setting",
}


@dataclass
class ProbeOptions(SourceOptions):
    """What is probed, and how long."""

    epochs: int = field(default=10, metadata={"help": "Epochs of every setting."})
    measured_epochs: int = field(
        default=2, metadata={"help": "Epochs measured of what is extrapolated."}
    )
    num_workers: int | None = field(
        default=None, metadata={"help": "Of both Trainers; default: the package's own choice."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Default: where the device computes it natively."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on fewer images, for a trial."}
    )
    memory: bool = field(default=True, metadata={"help": "Measure peak memory too."})
    memory_of: str | None = field(
        default=None, metadata={"help": "Run one arm only and print its peak memory."}
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("memory_of", self.memory_of, tuple(LABELS))
        for name in ("epochs", "measured_epochs", "max_train_samples"):
            check_positive(name, getattr(self, name))


class EpochTimer(TrainerCallback):
    """Times epochs, each with the evaluation that follows it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[float] = []

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self._mark()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._mark()

    def _mark(self) -> None:
        synchronize(self.device)
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of every epoch."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, and write the results."""
    return run_benchmark(ProbeOptions, MODULE, __doc__, _run, argv)


def _run(options: ProbeOptions, argv: list[str]) -> None:
    # As given: what the preset fills in are folders of this machine.
    given = asdict(options)
    with tempfile.TemporaryDirectory(prefix="linear_probe_") as work_dir:
        fill_sources(options, Path(work_dir))
        arguments = resolve(options, Path(work_dir))
        data = load_data(arguments.data)
        processor = load_image_processor(arguments.model.model_name_or_path)
        if options.memory_of is not None:
            with MemoryMeter(arguments.training.device) as meter:
                if options.memory_of == "ours":
                    run_probe(arguments, data, processor)
                else:
                    STEP_BY_STEP[options.memory_of](arguments, data, processor, 1)
                meter.report()
            return
        results = measure(arguments, data, processor, options)
    command = " ".join(["python", "-m", MODULE, *argv])
    path = write_probe(arguments.training.device, options, given, results, command)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def resolve(options: ProbeOptions, work_dir: Path) -> RunArguments:
    """Return the run as ``train.py`` would resolve it."""
    assert options.model_name_or_path is not None
    assert options.batch_size is not None
    return RunArguments(
        # Photographs scaled to few pixels, or drawn without noise, may be equal.
        DataArguments(
            data_dir=options.data_dir,
            cache_dir=str(work_dir / "cache"),
            allow_duplicates=True,
            max_train_samples=options.max_train_samples,
        ),
        AugmentationArguments(augment=False),
        ModelArguments(
            model_name_or_path=options.model_name_or_path, trainable="head", pooling="mean"
        ),
        SiglipTrainingArguments(
            output_dir=str(work_dir / "run"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            dataloader_num_workers=options.num_workers,
            bf16=options.bf16,
            save_strategy="epoch",
            disable_tqdm=True,
        ),
        ProbeArguments(
            probe_learning_rates=list(LEARNING_RATES), probe_weight_decays=list(WEIGHT_DECAYS)
        ),
    )


def measure(
    arguments: RunArguments, data: ClassificationData, processor: Any, options: ProbeOptions
) -> dict[str, Any]:
    """Return the seconds of each arm, and what the probe found."""
    settings = len(LEARNING_RATES) * len(WEIGHT_DECAYS)
    device = arguments.training.device
    with Stopwatch(device) as watch:
        probe = run_probe(arguments, data, processor)
    facts = probe.facts["probe"]
    arms: dict[str, Any] = {
        "ours": {
            "seconds": watch.seconds,
            "encoding_seconds": facts["encoding_seconds"],
            "fit_seconds": facts["fit_seconds"],
            "encoded_images": facts["encoded_images"],
        }
    }
    for name, time_epochs in STEP_BY_STEP.items():
        epochs = time_epochs(arguments, data, processor, options.measured_epochs)
        arms[name] = {
            "epoch_seconds": epochs,
            "seconds": statistics.median(epochs) * options.epochs * settings,
        }
    for name, arm in arms.items():
        arm["times_ours"] = arm["seconds"] / arms["ours"]["seconds"]
        arm["peak_memory"] = (
            measure_memory(MODULE, list_memory_options(options, name)) if options.memory else None
        )
    return {
        "settings": settings,
        "images": {name: len(rows) for name, rows in data.splits.items()},
        "winner": facts["winner"],
        "knn": probe.facts["knn"],
        "arms": arms,
    }


def run_probe(arguments: RunArguments, data: ClassificationData, processor: Any) -> ProbeResult:
    """Run the package's probe from the checkpoint on."""
    set_seed(arguments.training.seed)
    model = build_model(encoder_arguments(arguments), data, processor)
    return fit_probe(arguments, data, model, processor)


def plain_arguments(training: SiglipTrainingArguments, epochs: int) -> TrainingArguments:
    """Return the arguments of the usual script: our batch, precision and workers."""
    names = (
        *("output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "bf16"),
        *("dataloader_num_workers", "dataloader_pin_memory", "tf32", "use_cpu"),
        *("remove_unused_columns", "disable_tqdm", "save_strategy", "save_total_limit"),
    )
    return TrainingArguments(
        report_to=[],
        num_train_epochs=epochs,
        eval_strategy="epoch",
        learning_rate=1e-3,
        **{name: getattr(training, name) for name in names},
    )


def time_trainer(trainer: Trainer, device: torch.device) -> list[float]:
    """Train, and return the seconds of every epoch."""
    timer = EpochTimer(device)
    trainer.add_callback(timer)
    trainer.train()
    return timer.seconds


def time_usual(
    arguments: RunArguments, data: ClassificationData, processor: Any, epochs: int
) -> list[float]:
    """Time the usual script with its encoder frozen."""
    vision_config = vision_config_of(load_checkpoint_config(arguments.model.model_name_or_path))
    model = usual_script.build_model(vision_config, len(data.class_names), None)
    model.vision_model.requires_grad_(False)
    # The whole image, as it is.
    plain = AugmentationArguments(crop_min_scale=1.0, horizontal_flip=0.0, color_jitter=0.0)
    training = plain_arguments(arguments.training, epochs)
    transform = usual_script.build_transform(processor, plain)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=data.splits["train"].with_transform(transform),
        eval_dataset=data.splits["validation"].with_transform(transform),
        data_collator=usual_script.collate,
    )
    return time_trainer(trainer, arguments.training.device)


def time_steps(
    arguments: RunArguments, data: ClassificationData, processor: Any, epochs: int
) -> list[float]:
    """Time the package without its feature cache; pixels are decoded already."""
    arguments.training.num_train_epochs = epochs
    model = build_model(arguments, data, processor)
    trainer = build_trainer(arguments, data, model, processor)
    # As the others: the validation split alone.
    trainer.eval_dataset = {"validation": trainer.eval_dataset["validation"]}
    return time_trainer(trainer, arguments.training.device)


STEP_BY_STEP = {"steps": time_steps, "usual": time_usual}


def write_probe(
    device: torch.device,
    options: ProbeOptions,
    given: dict[str, Any],
    results: dict[str, Any],
    command: str,
) -> Path:
    """Write JSON, table and plot."""
    arms = results["arms"]
    measured = (
        f"extrapolated: the median of {options.measured_epochs} epochs of one setting x "
        f"{options.epochs} x {results['settings']}"
    )
    rows = [
        [
            LABELS[name],
            arm["seconds"],
            f"{arm['times_ours']:.1f}x",
            format_bytes(get_own_bytes(arm["peak_memory"])),
            "measured whole" if name == "ours" else measured,
        ]
        for name, arm in arms.items()
    ]
    ours, winner, images = arms["ours"], results["winner"], results["images"]
    table = format_table(
        [
            f"{results['settings']} settings, {options.epochs} epochs",
            *("seconds", "time", "peak memory", "how"),
        ],
        rows,
    )
    table += (
        f"\n\n{images['train']} training, {images['validation']} validation and "
        f"{images['test']} test images. Of ours, {ours['encoding_seconds']:.1f} s encode "
        f"{ours['encoded_images']} images and {ours['fit_seconds']:.1f} s fit the "
        f"{results['settings']} heads. Best setting: learning rate {winner['learning_rate']:g}, "
        f"weight decay {winner['weight_decay']:g}, validation accuracy "
        f"{winner['validation_accuracy']:.2%} (k-NN {results['knn']['validation_accuracy']:.2%})."
    )
    figure, axes = make_axes(f"Linear probe, {results['settings']} settings: {name_device(device)}")
    for number, (name, arm) in enumerate(arms.items()):
        axes.barh(
            LABELS[name].replace(": ", ":\n").replace(", ", ",\n"),
            arm["seconds"],
            height=0.6,
            color=COLORS[number],
        )
        note = f"{format_cell(arm['seconds'])} s, {arm['times_ours']:.0f}x"
        axes.annotate(
            note, (arm["seconds"], number), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.set_xlim(1, 8 * max(arm["seconds"] for arm in arms.values()))
    axes.set_xlabel("seconds (logarithmic); all but the first extrapolated")
    axes.invert_yaxis()
    return write_report(
        "linear_probe",
        device,
        command,
        {
            name: value
            for name, value in given.items()
            if name not in ("output_dir", "memory", "memory_of")
        },
        results,
        table,
        figure,
        Path(options.output_dir),
    )


if __name__ == "__main__":
    sys.exit(main())
