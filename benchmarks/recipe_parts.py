"""What each part of the recipe is worth: each left out in turn, 12 epochs, 3 seeds.

    python -m benchmarks.recipe_parts --seeds 0 1 2

Every arm is configs/nano_64px.yaml with one change, scored on the validation and test images. Class
balance is tried on a long-tailed part of the photographs, too. Each finished run is kept in
results/recipe_parts/ and an unfinished one has checkpoints in runs/recipe_parts/: a later call
continues, and one with other seeds or arms may run beside.
"""

import argparse
import shutil
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import REPOSITORY
from benchmarks.learning_speed import CONFIG, SPLITS, classify, pack, prepare, train, unpack
from benchmarks.report import RESULTS, format_difference, format_table, write_report
from siglip_flowers.base.files import CHECKPOINT_DIR, read_json, write_json
from siglip_flowers.data.rows import get_labels
from siglip_flowers.data.sources.load import load_data
from siglip_flowers.metrics.statistics import crossed_bootstrap
from siglip_flowers.training.checkpoints import list_checkpoints

EPOCHS, RUNS = 12, RESULTS / "recipe_parts"
PARTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "no-muon": {"optim": "adamw_torch", "optim_args": None, "learning_rate": 1e-3},
    "no-patch-drop": {"patch_drop": 0.0},
    "no-smaller-training-images": {"image_size": 64, "train_image_size": None},
    "no-moving-average": {"ema": None},
    "no-mixup": {"mixup_alpha": 0.0},
    "no-label-smoothing": {"label_smoothing_factor": 0.0},
}
BALANCES = ("none", "weights", "sampler", "logit_adjustment")
ARMS = PARTS | {
    f"{data}-{balance}": {"class_balance": balance}
    for data in ("whole", "tail")
    for balance in BALANCES
    if (data, balance) != ("whole", BALANCES[-1])  # that is the recipe
}


def cut_tail(labels: NDArray) -> NDArray:
    """Return rows of a long tail: 100 images of the largest class down to 2 of the smallest."""
    sizes = np.bincount(labels)
    wanted = np.geomspace(100, 2, len(sizes)).round().astype(int)
    order = np.argsort(-sizes, kind="stable")
    rows = [
        np.flatnonzero(labels == label)[:most] for label, most in zip(order, wanted, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def run(arm: str, seed: int) -> None:
    """Train an arm, unless it was done before, and keep which images it classifies correctly."""
    path = RUNS / f"{arm}_{seed}.json"
    if path.exists():
        return
    directory = REPOSITORY / "runs" / "recipe_parts" / f"{arm}_{seed}"
    checkpoints = list_checkpoints(directory / CHECKPOINT_DIR)
    saved = {"save_strategy": "steps", "save_steps": 0.05, "save_total_limit": 1}
    job = prepare(CONFIG, 1, str(directory), seed=seed, **saved, **ARMS[arm])
    if arm.startswith("tail"):
        splits = job.data.splits
        splits["train"] = splits["train"].select(cut_tail(get_labels(splits["train"])))
    options = job.arguments.training
    options.max_steps = EPOCHS * len(job.data.splits["train"]) // options.images_per_step
    model, seconds = train(job, None, str(checkpoints[-1]) if checkpoints else None)
    correct = np.concatenate([classify(model, job, split) for split in SPLITS])
    # The time of a run that was interrupted is not known.
    spent = None if checkpoints else seconds
    write_json(path, {"processor_seconds": spent, "correct": pack(correct)})
    shutil.rmtree(directory)
    print(f"{arm}, seed {seed}: {correct.mean():.2%}", flush=True)


def read(arm: str) -> dict[int, NDArray]:
    """Return by seed which images (N,) the finished runs of an arm classify correctly, bool."""
    paths = RUNS.glob(f"{arm}_*.json")
    return {int(p.stem.rpartition("_")[2]): unpack(read_json(p)["correct"]) for p in paths}


def compare(arm: str, base: str, weights: NDArray) -> dict[str, Any]:
    """Return the accuracy of an arm, images weighted, and its difference from another arm."""
    ours, others = read(arm), read(base)
    seeds = sorted(ours.keys() & others.keys())
    if not seeds:
        return {}
    right, beside = (np.stack([found[seed] for seed in seeds]) * 1.0 for found in (ours, others))
    paired = asdict(crossed_bootstrap((right - beside) * weights))
    return {"seeds": seeds, "accuracy": float((right * weights).mean()), **paired}


def main() -> None:
    """Do the runs that are missing, and compare what is there."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS))
    torch.set_num_threads(1)
    options = parser.parse_args()
    for seed in options.seeds:
        for arm in options.arms:
            run(arm, seed)
    splits = load_data(prepare(CONFIG, 1, ".").arguments.data).splits
    labels = {split: get_labels(rows) for split, rows in splits.items()}
    answers, whole = np.concatenate([labels[split] for split in SPLITS]), labels["train"]
    tail = whole[cut_tail(whole)]
    results: dict[str, dict[str, Any]] = {}
    for arm in (*PARTS, "whole-none"):
        results[arm] = compare(arm, "recipe", np.ones(len(answers)))
    for data, learned in {"whole": whole, "tail": tail}.items():
        # As many images of each class as it has in training, by weight: the splits are balanced.
        frequent = np.bincount(learned)[answers].astype(float)
        for kind, weights in {"equal": np.ones(len(answers)), "as learned": frequent}.items():
            for balance in BALANCES:
                arm = f"{data}-{balance}" if f"{data}-{balance}" in ARMS else "recipe"
                shares = weights / weights.mean()
                results[f"{arm}, {data}, {kind}"] = compare(arm, f"{data}-none", shares)
    rows = []
    for name, found in results.items():
        if found:
            shown = (f"{100 * found['accuracy']:.1f}", format_difference(found))
            rows.append([name, len(found["seeds"]), *shown])
    table = format_table(("arm", "seeds", "accuracy, %", "difference, points"), rows)
    print(table)
    facts = (torch.device("cpu"), "python -m benchmarks.recipe_parts --seeds 0 1 2")
    settings = {"config": CONFIG.name, "epochs": EPOCHS, "arms": ARMS}
    write_report("recipe_parts", *facts, settings, results, table)


if __name__ == "__main__":
    main()
