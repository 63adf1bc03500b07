"""Where a training step's time goes: each part of the package's step beside the bare loop's.

    python -m benchmarks.train_profile --preset cpu

Takes the options of ``benchmarks.train_throughput``. Every part is timed with the device idle at
both ends, so that the sum is a little more than an undisturbed step. Writes
``benchmarks/results/train_profile_<device>.json``, ``.md`` and ``.png``.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.harness import name_device, run_benchmark, synchronize
from benchmarks.report import COLORS, TEXT_COLOR, format_table, make_axes, write_report
from benchmarks.train_throughput import ThroughputOptions, fill_preset, make_job
from benchmarks.training_arms import TrainingJob, time_bare_loop
from siglip_flowers.training.build import build_model, build_trainer

MODULE = "benchmarks.train_profile"
PARTS = (
    "fetch",
    "augment",
    "normalize",
    "forward and loss",
    "backward",
    "clip",
    "optimizer",
    "zero_grad",
    "scheduler",
    "callbacks and log",
    "rest of the Trainer",
)


class PartTimer:
    """Sums the seconds that functions take, by part and step; parts within parts count once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # A process that shares its cores is timed by what it computed itself.
        single = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock: Callable[[], float] = time.process_time if single else time.perf_counter
        self.steps: list[dict[str, float]] = []
        self._current: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._began: float | None = None

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time counted as the part's."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            start = self.clock()
            self._inner.append(0.0)
            result = function(*args, **kwargs)
            synchronize(self.device)
            seconds = self.clock() - start
            self._current[part] += seconds - self._inner.pop()
            self._inner[-1] += seconds
            return result

        return timed

    def close_step(self) -> None:
        """Begin the next step."""
        now = self.clock()
        if self._began is not None:
            total = now - self._began
            known = sum(self._current.values())
            self.steps.append({**self._current, "rest of the Trainer": total - known})
        self._began = now
        self._current = defaultdict(float)

    def summarize(self, skip: int) -> dict[str, float]:
        """Return each part's median milliseconds a step."""
        kept = self.steps[skip:]
        return {
            part: 1e3 * statistics.median(step.get(part, 0.0) for step in kept) for part in PARTS
        }


class _TimedObject:
    """Stands for an object and counts the time of its methods, and of calling it, as a part's."""

    def __init__(self, part: str, target: Any, timer: PartTimer) -> None:
        self._part = part
        self._target = target
        self._timer = timer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._timer.wrap(self._part, self._target)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return self._timer.wrap(self._part, value) if callable(value) else value


class _OptimizerTimer(TrainerCallback):
    """Wraps the optimizer's parts once Accelerate has prepared them."""

    def __init__(self, timer: PartTimer, trainer: Any) -> None:
        self.timer = timer
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        optimizer, scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
        optimizer.step = self.timer.wrap("optimizer", optimizer.step)
        scheduler.step = self.timer.wrap("scheduler", scheduler.step)
        model = self.trainer.model
        model.zero_grad = self.timer.wrap("zero_grad", model.zero_grad)


def profile_ours(job: TrainingJob) -> dict[str, float]:
    """Train for one round and return the milliseconds of each part of a step."""
    model = build_model(job.arguments, job.data, job.processor)
    trainer: Any = build_trainer(job.arguments, job.data, model, job.processor)
    timer = PartTimer(job.device)
    if trainer.augmenter is not None:
        trainer.augmenter = _TimedObject("augment", trainer.augmenter, timer)
    trainer.normalizer = _TimedObject("normalize", trainer.normalizer, timer)
    trainer.objective = timer.wrap("forward and loss", trainer.objective)
    accelerator, callbacks = trainer.accelerator, trainer.callback_handler
    accelerator.backward = timer.wrap("backward", accelerator.backward)
    accelerator.clip_grad_norm_ = timer.wrap("clip", accelerator.clip_grad_norm_)
    trainer._maybe_log_save_evaluate = timer.wrap(
        "callbacks and log", trainer._maybe_log_save_evaluate
    )
    fetch = timer.wrap("fetch", trainer.get_batch_samples)

    def fetch_next(*args: Any, **kwargs: Any) -> Any:
        # A step is from one fetch to the next.
        timer.close_step()
        return fetch(*args, **kwargs)

    trainer.get_batch_samples = fetch_next
    for event in ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"):
        setattr(callbacks, event, timer.wrap("callbacks and log", getattr(callbacks, event)))
    trainer.add_callback(_OptimizerTimer(timer, trainer))
    trainer.train()
    timer.close_step()
    return timer.summarize(job.skip_steps)


def profile_limit(job: TrainingJob) -> dict[str, float]:
    """Run the bare loop for one round and return the milliseconds of each part of a step."""
    model = build_model(job.arguments, job.data, job.processor)
    trainer = build_trainer(job.arguments, job.data, model, job.processor)
    timer = PartTimer(job.device)
    time_bare_loop(trainer, job, wrap=timer.wrap, close_step=timer.close_step)
    return timer.summarize(job.skip_steps)


def main(argv: list[str] | None = None) -> int:
    """Parse the command line, measure, and write the results."""
    return run_benchmark(ThroughputOptions, MODULE, __doc__, _run, argv)


def _run(options: ThroughputOptions, argv: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="train_profile_") as work_dir:
        fill_preset(options, Path(work_dir))
        job = make_job(options, Path(work_dir))
        limit, ours = profile_limit(job), profile_ours(job)
    totals = {"limit": sum(limit.values()), "ours": sum(ours.values())}
    rows = [
        [part, limit[part], ours[part], f"{(ours[part] - limit[part]) / totals['limit']:+.1%}"]
        for part in PARTS
    ]
    rows.append(
        ["sum", *totals.values(), f"{(totals['ours'] - totals['limit']) / totals['limit']:+.1%}"]
    )
    table = format_table(
        ["ms a step (median)", "bare loop", "siglip_flowers", "difference, share of bare loop"],
        rows,
    )
    device = name_device(job.device)
    figure, axes = make_axes(f"Parts of a training step, {device}", height=2.8)
    for row, (label, parts) in enumerate((("bare loop", limit), ("siglip_flowers", ours))):
        left = 0.0
        for number, part in enumerate(PARTS):
            color = COLORS[number % len(COLORS)]
            hatch = "" if number < len(COLORS) else "///"
            name = part if row == 0 else "_"  # matplotlib's legends leave such names out
            axes.barh(label, parts[part], left=left, color=color, hatch=hatch, label=name)
            left += parts[part]
    axes.invert_yaxis()
    axes.set_xlabel("ms a step", color=TEXT_COLOR)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    command = " ".join(["python", "-m", MODULE, *argv])
    path = write_report(
        "train_profile",
        job.device,
        command,
        {"preset": options.preset, "batch_size": options.batch_size, "steps": options.steps},
        {"milliseconds": {"limit": limit, "ours": ours}, "totals": totals},
        table,
        figure,
        Path(options.output_dir),
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
