"""Check and measure the package on a GPU in one command of a few minutes, without a network.

    python -m benchmarks.gpu_check          # on a GPU: at most eight minutes
    python -m benchmarks.gpu_check --cpu    # the same parts at a small size, a minute

Five parts: results against the CPU's, training, probe and inference, memory by method and size, and
the drawn flowers trained to the end. A line is printed, and ``gpu_check_<device>.json`` and ``.md``
are written, as each part ends, so that a run that is cut off leaves what it found.
"""

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import SiglipVisionConfig

from benchmarks import inference, train_throughput
from benchmarks.harness import (
    REPOSITORY,
    Stopwatch,
    alternate,
    compare,
    name_device,
    run_benchmark,
    select_device,
)
from benchmarks.images import (
    base_config,
    make_tower,
    tiny_config,
    write_checkpoint,
    write_full_size,
    write_random_images,
)
from benchmarks.report import RESULTS, format_bytes, format_table, write_report
from benchmarks.training_arms import build_arms, prepare_job
from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import METRICS_FILE
from siglip_flowers.commands.train import main as train
from siglip_flowers.config import DataArguments, ModelArguments
from siglip_flowers.evaluation.features import fit_head
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.model.adapters import add_adapters
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.loading import load_classifier, load_image_processor
from siglip_flowers.training.build import build_model
from siglip_flowers.training.trainer import SiglipTrainer

MODULE = "benchmarks.gpu_check"
CLASSES = [f"class {number}" for number in range(102)]
# Epochs of linear evaluation in the literature (He et al. 2022, appendix A: 90 to 100).
PROBE_EPOCHS = 90
LAUNCH_SECONDS = 300


@dataclass
class CheckOptions:
    """Which parts run, and where the results go."""

    cpu: bool = field(default=False, metadata={"help": "The small version, on the CPU."})
    parts: list[int] = field(
        default_factory=lambda: [1, 2, 3, 4, 5], metadata={"help": "Numbers of the parts to run."}
    )
    output_dir: str = field(default=str(RESULTS), metadata={"help": "Where results are written."})


@dataclass(frozen=True)
class Row:
    """A figure of the table: what it is, its value, what it should be, and whether it is."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None


class Bench:
    """Where the parts run: the device, a directory with a model and images, and the size."""

    def __init__(self, device: torch.device, directory: Path) -> None:
        self.device, self.directory = device, directory
        self.gpu = device.type == "cuda"
        self.config = base_config() if self.gpu else tiny_config()
        self.model = write_checkpoint(directory / "model", self.config)
        images = directory / "jpeg"
        self.images = (
            write_full_size(images, None, 40) if self.gpu else write_random_images(images, 1, 96)
        )
        self.batches = (64, 256) if self.gpu else (8,)
        self.steps, self.rounds = (20, 2) if self.gpu else (2, 1)

    def prepare(self, name: str, batch_size: int, steps: int, **training: Any) -> Any:
        """Return a training job on the images; ``training`` are options of the run."""
        frozen = {"trainable": training.pop("trainable")} if "trainable" in training else {}
        return prepare_job(
            ModelArguments(model_name_or_path=str(self.model), **frozen),
            DataArguments(
                data_dir=str(self.images),
                cache_dir=str(self.directory / "cache"),
                allow_duplicates=True,
            ),
            self.directory / name,
            batch_size=batch_size,
            steps=steps,
            skip_steps=0,
            **training,
        )


def check_results(bench: Bench) -> Iterator[Row]:
    """Compare the device's results with the CPU's, and runs that must agree with each other."""
    torch.manual_seed(0)
    model = load_classifier(str(bench.model), CLASSES).eval()
    processor = load_image_processor(str(bench.model))
    side = processor.size["height"]
    pixels = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)

    def classify(device: torch.device, compiled: bool = False, **options: Any) -> torch.Tensor:
        engine = InferenceEngine(copy.deepcopy(model), processor, device=device, **options)
        if compiled:
            engine.model.vision_model.compile()
        return engine.classify(pixels).float().cpu()

    expected = classify(torch.device("cpu"))

    def compare_logits(name: str, bound: float, **options: Any) -> Row:
        error = (classify(bench.device, **options) - expected).abs().max() / expected.abs().max()
        return Row(
            f"logits, {name}, against float32 on the CPU", f"{error:.1e}", *at_most(error, bound)
        )

    yield compare_logits("float32", 1e-4)
    yield compare_logits("bfloat16", 5e-2, dtype="bfloat16")
    if bench.gpu:
        yield compare_logits("float16", 1e-2, dtype="float16")
        try:  # a CPU would compile for longer than everything else takes
            yield compare_logits("compiled", 1e-3, compiled=True)
        except RuntimeError as error:
            yield Row("logits, compiled", f"not run: {error}")
    error = compare_gradients(model, pixels.float().div(127.5).sub(1), bench.device)
    yield Row("gradients with checkpointing", f"{error:.1e}", *at_most(error, 1e-4))
    yield compare_resumed(bench)
    yield run_two_processes(bench)


def at_most(value: float, bound: float) -> tuple[str, bool]:
    """Return the text of a target and whether it is met."""
    return f"at most {bound:g}", bool(value <= bound)


def at_least(value: float, bound: float) -> tuple[str, bool]:
    """Return the text of a target and whether it is met."""
    return f"at least {bound:g}", bool(value >= bound)


def compare_gradients(model: SiglipClassifier, pixels: torch.Tensor, device: torch.device) -> float:
    """Return the largest relative difference that gradient checkpointing makes."""
    model, pixels = copy.deepcopy(model).to(device).train(), pixels.to(device)
    labels, found = torch.arange(len(pixels), device=device), []
    for _ in range(2):
        model.zero_grad()
        model(pixel_values=pixels, labels=labels).loss.backward()
        found.append(torch.cat([value.grad.flatten() for value in model.parameters()]))  # type: ignore[union-attr]
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return float((found[1] - found[0]).abs().max() / found[0].abs().max())


def compare_resumed(bench: Bench) -> Row:
    """Train four steps, and two of them again from the checkpoint in the middle."""
    job = bench.prepare(
        "resumed", 8, 4, save_strategy="steps", save_steps=2, save_total_limit=9,
        full_determinism=True, num_workers=0,
    )  # fmt: skip
    weights = []
    with patch.dict(os.environ):  # full determinism sets variables and a switch for good
        for checkpoint in (None, "checkpoint-2"):
            torch.manual_seed(0)
            model = build_model(job.arguments, job.data, job.processor)
            trainer = SiglipTrainer(job.arguments, job.data, model, job.processor)
            path = checkpoint and str(bench.directory / "resumed" / "checkpoints" / checkpoint)
            trainer.train(resume_from_checkpoint=path)
            state: Any = trainer.model
            weights.append({name: value.cpu() for name, value in state.state_dict().items()})
    torch.use_deterministic_algorithms(False)
    changed = sum(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    return Row("weights that differ after a resume", str(changed), "0", changed == 0)


def run_two_processes(bench: Bench) -> Row:
    """Train two steps in two processes, each on a GPU of its own or both on the CPU."""
    name = "a run in two processes"
    if bench.gpu and torch.cuda.device_count() < 2:
        return Row(name, "not run: NCCL needs a GPU for each process")
    words = [
        *("--model_name_or_path", str(bench.model), "--data_dir", str(bench.images)),
        *("--cache_dir", str(bench.directory / "cache"), "--allow_duplicates", "--max_steps", "2"),
        *("--per_device_train_batch_size", "4", "--report_to", "none", "--max_eval_samples", "16"),
        *("--output_dir", str(bench.directory / "two"), "--save_strategy", "no"),
        *("--load_best_model_at_end", "false", "--eval_strategy", "no"),
    ]
    config = "ddp.yaml" if bench.gpu else "cpu.yaml"
    launch = ["--config_file", str(REPOSITORY / "configs" / "accelerate" / config)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *launch),
            *("--num_processes", "2", "train.py", *words),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    failure = f"failed: {lines[-1][:120] if lines else done.returncode}"
    return Row(name, failure if done.returncode else "trained", "trained", not done.returncode)


def measure_training(bench: Bench) -> Iterator[Row]:
    """Compare training with the device's limit and the usual script."""
    for batch in bench.batches:
        options = train_throughput.ThroughputOptions(
            preset="gpu" if bench.gpu else "cpu",
            model_name_or_path=str(bench.model),
            data_dir=str(bench.images),
            cache_dir=str(bench.directory / "cache"),
            batch_size=batch,
            steps=bench.steps,
            rounds=bench.rounds,
            memory=False,
        )
        train_throughput.fill_preset(options, bench.directory)
        job = train_throughput.make_job(options, bench.directory)
        found = train_throughput.measure(job, options)
        ours, limit = found["arms"]["ours"], found["ours_over_limit"]
        name, usual = f"training, batch {batch}", found["ours_over_usual"]
        share = ours["model_flop_utilization"]
        rate = f"{ours['images_per_second']:,.0f} images/s"
        yield Row(name, rate if share is None else f"{rate}, {share:.0%} of the peak FLOP/s")
        yield Row(f"{name}, of the limit", f"{limit:.3f}", *bench_target(bench, limit, 0.95))
        yield Row(f"{name}, times the usual script", f"{usual:.2f}", *bench_target(bench, usual, 2))
        if bench.gpu:
            peaks = {arm: measure_peak(bench.device, run) for arm, run in build_arms(job).items()}
            ratio = peaks["ours"] / peaks["usual"]
            value = f"{format_bytes(peaks['ours'])}, {ratio:.3f} of the usual script's"
            yield Row(f"{name}, peak memory", value, *at_most(ratio, 1))


def bench_target(bench: Bench, value: float, bound: float) -> tuple[str, bool | None]:
    """Return a target of a GPU's speed; the small sizes on a CPU have none."""
    return at_least(value, bound) if bench.gpu else ("", None)


def measure_peak(device: torch.device, run: Callable[[], object]) -> int:
    """Return the bytes of GPU memory that a piece of work takes at most."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def measure_classifying(bench: Bench) -> Iterator[Row]:
    """Compare the probe with re-encoding in every epoch, and inference with pipeline."""
    batch = bench.batches[-1]
    job = bench.prepare("probe", batch, 1, trainable="head", num_train_epochs=1)
    count = len(job.data.splits["train"])
    job.arguments.training.max_steps = -(-count // batch)
    model = build_model(job.arguments, job.data, job.processor)
    arguments = job.arguments
    trainer = SiglipTrainer(arguments, job.data, copy.deepcopy(model), job.processor)
    with Stopwatch(bench.device) as epoch:
        trainer.train()
    with Stopwatch(bench.device) as fit:
        fit_head(model, job.processor, job.data, arguments.data, arguments.training)
    ratio = PROBE_EPOCHS * epoch.seconds / fit.seconds
    name = f"linear probe, times {PROBE_EPOCHS} epochs that encode again"
    yield Row(name, f"{ratio:.1f}", *bench_target(bench, ratio, 20))
    folder = bench.directory / "classify"
    (folder / "images").mkdir(parents=True)
    model.save_pretrained(folder / "model")
    job.processor.save_pretrained(folder / "model")
    files = sorted(bench.images.rglob("*.jpg"))
    for number in range(2048 if bench.gpu else 32):
        os.link(files[number % len(files)], folder / "images" / f"{number:05d}.jpg")
    arms = {
        name: inference.build_arm(name, folder, bench.device)
        for name in (inference.PIPELINE, inference.PIPELINE_BATCH, inference.OURS)
    }
    samples = alternate(arms, bench.rounds)
    for name in (inference.PIPELINE, inference.PIPELINE_BATCH):
        ratio = compare(samples, inference.OURS, name)
        target = bench_target(bench, ratio, 3) if name == inference.PIPELINE else ("", None)
        yield Row(f"inference, times the {name}", f"{ratio:.2f}", *target)


def measure_methods(bench: Bench) -> Iterator[Row]:
    """Measure memory and time of a step by what trains, for encoders of three sizes."""
    towers = {"tiny": bench.config}
    if bench.gpu:
        towers = {
            "base, 224 px": bench.config,
            "large, 256 px": make_tower(1024, 4096, 24, 16, 256, 16),
            "so400m, 384 px": make_tower(1152, 4304, 27, 16, 384, 14),
        }
    for tower, config in towers.items():
        for method in ("head", "LoRA on q and v", "LoRA", "all"):
            if "LoRA" in method and find_spec("peft") is None:
                continue
            try:
                yield measure_method(bench, config, method, f"{method}, {tower}")
            except torch.OutOfMemoryError:
                yield Row(f"{method}, {tower}", "out of memory")
            gc.collect()


def measure_method(bench: Bench, config: SiglipVisionConfig, method: str, name: str) -> Row:
    """Train a few steps of a batch that lies on the device, in bfloat16."""
    device, batch = bench.device, 32 if bench.gpu else 4
    with torch.device(device):
        model = SiglipClassifier(SiglipClassifierConfig(config, id2label=dict(enumerate(CLASSES))))
    if method == "head":
        model.vision_model.requires_grad_(False)
    elif method != "all":
        targets = ["q_proj", "v_proj"] if method.endswith("q and v") else None
        add_adapters(model, ModelArguments(lora_r=16, lora_target_modules=targets))
    model.to(device).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=bench.gpu)
    pixels = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
    labels = torch.arange(batch, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(pixel_values=pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    peak = measure_peak(device, step) if bench.gpu else step()
    with Stopwatch(device) as watch:
        for _ in range(3):
            step()
    speed = f"{watch.seconds / 3 * 1e3:,.0f} ms per step of {batch}"
    return Row(name, f"{format_bytes(peak)}, {speed}" if peak else speed)


def train_drawn(bench: Bench) -> Iterator[Row]:
    """Train the drawn flowers with train.py, to the end or on a CPU for some steps."""
    output = bench.directory / "drawn"
    words = [
        *("--config", str(REPOSITORY / "configs" / "demo.yaml"), "--report_to", "none"),
        *("--output_dir", str(output), "--cache_dir", str(bench.directory / "cache")),
    ]
    if not bench.gpu:
        words += ["--procedural_images_per_class", "5", "--max_steps", "4"]
    start = time.perf_counter()
    code = train(words)
    seconds = time.perf_counter() - start
    if code:
        raise RunError(f"train.py ended with code {code}")
    metrics = json.loads((output / METRICS_FILE).read_text(encoding="utf-8"))
    accuracy = metrics["splits"]["test"]["accuracy"]
    yield Row("drawn flowers, test accuracy", f"{accuracy:.2%} after {seconds:.0f} s")


PARTS: dict[int, tuple[str, Callable[[Bench], Iterator[Row]]]] = {
    1: ("correctness", check_results),
    2: ("training", measure_training),
    3: ("probe and inference", measure_classifying),
    4: ("memory by method", measure_methods),
    5: ("drawn flowers", train_drawn),
}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the parts; the exit code is 1 if one failed."""
    return run_benchmark(CheckOptions, MODULE, __doc__, _run, argv)


def _run(options: CheckOptions, command: str) -> None:
    if options.cpu:
        # Before CUDA is first asked for, so that everything takes the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device = select_device(options.cpu)
    rows: list[Row] = []
    timings: dict[str, float] = {}
    failed = []
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as directory:
        print(f"gpu_check on {name_device(device)}", flush=True)
        bench = Bench(device, Path(directory))
        for number in options.parts:
            name, measure = PARTS[number]
            start, found = time.perf_counter(), []
            try:
                for row in measure(bench):
                    found.append(row)
            except Exception as error:  # the other parts still say something
                traceback.print_exc()
                found.append(Row(name, f"failed: {type(error).__name__}", "no error", False))
                failed.append(name)
            timings[name] = time.perf_counter() - start
            rows += found
            print(format_part(number, name, timings[name], found), flush=True)
            write(device, command, rows, timings, Path(options.output_dir))
            gc.collect()
    if failed:
        raise RunError(f"These parts failed: {', '.join(failed)}; see above.")


def format_part(number: int, name: str, seconds: float, rows: list[Row]) -> str:
    """Return the line that ends a part: its figures, and which targets are missed."""
    figures = "; ".join(
        f"{row.name} {row.value}" + (f" (MISSED: {row.target})" if row.met is False else "")
        for row in rows
    )
    return f"part {number}, {name}, {seconds:.0f} s: {figures}"


def write(
    device: torch.device, command: str, rows: list[Row], timings: dict[str, float], directory: Path
) -> None:
    """Write the JSON and the table of all parts so far."""
    marks = {True: "yes", False: "no", None: ""}
    table = format_table(
        ["", "measured", "target", "met"],
        [[row.name, row.value, row.target, marks[row.met]] for row in rows],
    )
    results = {"rows": [asdict(row) for row in rows], "seconds": timings}
    write_report("gpu_check", device, command, {}, results, table, directory)


if __name__ == "__main__":
    sys.exit(main())
