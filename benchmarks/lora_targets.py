"""Which modules LoRA adapts by default: the fewest that cost less than half a point of accuracy.

    python -m benchmarks.lora_targets

Each choice of modules is trained with ``lora_targets.yaml`` at every learning rate, with a seed of
its own. The rate with the lowest loss on validation, which varies less than accuracy, is kept; the
accuracy on test is that of three other seeds. Finished runs are not repeated.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch

from benchmarks.harness import REPOSITORY
from benchmarks.report import format_difference, format_table, write_report
from siglip_flowers import train
from siglip_flowers.base.files import read_json
from siglip_flowers.config.model import LORA_MODULES
from siglip_flowers.metrics.statistics import paired_bootstrap

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj", "attention")
TARGETS = {"queries and values": ("q_proj", "v_proj"), "attention": ATTENTION, "all": LORA_MODULES}
RATES, TUNING_SEED, SEEDS = (1e-3, 3e-3, 1e-2), 100, (0, 1, 2)


def run(targets: tuple[str, ...], rate: float, seed: int, **more: object) -> Path:
    """Train once, unless it was done before, and return the directory of the run."""
    directory = Path("runs/lora_targets", f"{'-'.join(targets)}_{rate:g}_{seed}")
    if not (directory / "metrics.json").exists():
        more |= {"lora_target_modules": list(targets), "learning_rate": rate, "seed": seed}
        config = REPOSITORY / "benchmarks" / "lora_targets.yaml"
        train(config=config, output_dir=str(directory), **more)
    return directory


def main() -> None:
    """Do all runs, compare each choice with all modules, and write the table."""
    chosen, correct, results, rows = {}, {}, {}, []
    for name, targets in TARGETS.items():
        tried = {rate: run(targets, rate, TUNING_SEED, max_eval_samples=1020) for rate in RATES}
        losses = {
            rate: read_json(directory / "metrics.json")["splits"]["validation"]["loss"]
            for rate, directory in tried.items()
        }
        chosen[name] = min(losses, key=losses.__getitem__)
        files = [run(targets, chosen[name], seed) / "predictions_test.parquet" for seed in SEEDS]
        tables = [pyarrow.parquet.read_table(file, columns=["correct"]) for file in files]
        correct[name] = np.stack([table["correct"].to_numpy() for table in tables])
    for name, right in correct.items():
        paired = asdict(paired_bootstrap(right, correct["all"]))
        results[name] = {"rate": chosen[name], "accuracy": float(right.mean()), **paired}
        beside = "" if name == "all" else format_difference(paired)
        rows.append([name, chosen[name], f"{100 * right.mean():.1f}", beside])
    columns = ("adapted", "learning rate", "test accuracy, %", "difference from all, points")
    table, settings = format_table(columns, rows), {"rates": RATES, "seeds": SEEDS}
    print(table)
    command = "python -m benchmarks.lora_targets"
    write_report("lora_targets", torch.device("cpu"), command, settings, results, table)


if __name__ == "__main__":
    main()
