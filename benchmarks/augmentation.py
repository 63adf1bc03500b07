"""Compare the package's augmentation with kornia's: time, and whether images can be keyed.

    python -m benchmarks.augmentation [--threads 2] [--device cpu] [--output_dir DIR]

Writes ``augmentation.json`` and ``augmentation.md``. kornia is optional: without it only the
package's own augmentation is measured, and the files say so.
"""

import argparse
import importlib
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from siglip_flowers.base.environment import describe_environment
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.config import AugmentationArguments
from siglip_flowers.data.augmentation.images import BatchAugmenter

BATCH = 64
WARM_UP = 5
SIZES = {64: 60, 224: 20}  # Side in pixels, and how often it is measured.
CROP_MIN_SCALE, JITTER = 0.35, 0.3
RANDAUGMENT = {"randaugment_num_ops": 2, "randaugment_magnitude": 9}
OFF = {"color_jitter": 0.0}
CASES: dict[str, dict[str, Any]] = {
    "crop + flip + jitter": {"color_jitter": JITTER},
    "crop + flip + jitter + mixup/CutMix": {
        "color_jitter": JITTER,
        "mixup_alpha": 0.2,
        "cutmix_alpha": 1.0,
    },
    "crop + flip + RandAugment": {**OFF, "auto_augment": "randaugment", **RANDAUGMENT},
    "crop + flip + TrivialAugment": {**OFF, "auto_augment": "trivialaugment"},
}
NOTE = """\
Both sides get the same uint8 batch and give float32 pixels; times are medians, taken in turns. Ours
draws the operation of RandAugment and TrivialAugment for each image; kornia draws one for the
whole batch, which is less work and less variation. Mixup and CutMix are measured for ours only:
here one share serves a batch, there each image has its own."""


def build_kornia(kornia: Any, case: str, size: int) -> Any:
    """Return kornia's counterpart of a case, or None where it has no comparable one."""
    augmentation = kornia.augmentation
    steps = [
        # In its default mode, "slice", which is the quicker one on a CPU.
        augmentation.RandomResizedCrop(
            (size, size), scale=(CROP_MIN_SCALE, 1.0), ratio=(3 / 4, 4 / 3)
        ),
        augmentation.RandomHorizontalFlip(),
    ]
    if case == "crop + flip + jitter":
        steps.append(augmentation.ColorJitter(JITTER, JITTER, JITTER, 0.0))
    elif case.endswith("RandAugment"):
        steps.append(augmentation.auto.RandAugment(2, 9))
    elif case.endswith("TrivialAugment"):
        steps.append(augmentation.auto.TrivialAugment())
    else:
        return None
    return augmentation.AugmentationSequential(*steps)


def measure(
    functions: dict[str, Callable[[int], Any]], repeats: int, device: str
) -> dict[str, Any]:
    """Return the median, quartiles and best of each function's time in ms, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for step in range(WARM_UP + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function(step)
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values[WARM_UP:], n=4)
        best = min(values[WARM_UP:])
        result[name] = {"median_ms": median, "quartiles_ms": [low, high], "best_ms": best}
    return result


def check_keying(function: Callable[[torch.Tensor, np.ndarray, int], torch.Tensor]) -> bool:
    """Return whether the same image at the same step comes out alike in another batch."""
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    order = np.array([5, 2, 7])
    return all(
        torch.allclose(
            function(pixels, np.arange(8), step)[order], function(pixels[order], order, step)
        )
        for step in range(5)
    )


def check_replay(pipeline: Any) -> bool:
    """Return whether kornia obeys parameters that are handed in, permuted with the images."""
    pixels = torch.rand(8, 3, 32, 32)
    order = torch.tensor([5, 2, 7, 0, 1, 3, 4, 6])
    varied = pipeline(pixels)
    params = pipeline._params
    for item in params:
        for key, value in item.data.items():
            # The order of the color changes and the batch's shape belong to all images.
            if key not in ("order", "forward_input_shape"):
                item.data[key] = value[order]
    return torch.allclose(pipeline(pixels[order], params=params), varied[order], atol=1e-5)


def import_kornia() -> Any:
    """Return kornia, or None where it cannot be imported."""
    try:
        importlib.import_module("kornia.augmentation.auto")
    except ImportError as error:
        print(f"kornia is left out: {error}")
        return None
    return importlib.import_module("kornia")


def compare(kornia: Any, device: str) -> dict[str, Any]:
    """Measure every case at every size, and check the keys."""
    rows, keyed = [], {}
    for case, options in CASES.items():
        arguments = AugmentationArguments(crop_min_scale=CROP_MIN_SCALE, **options)
        for size, repeats in SIZES.items():
            torch.manual_seed(0)
            pixels = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8).to(device)
            labels, indices = torch.arange(BATCH, device=device), np.arange(BATCH)
            ours = BatchAugmenter(arguments, size, 102, seed=0)
            functions = {"ours": lambda step: ours(pixels, labels, indices, step)}  # noqa: B023
            theirs = kornia and build_kornia(kornia, case, size)
            if theirs:
                functions["kornia"] = lambda _: theirs(pixels.float() / 255)  # noqa: B023
            rows.append({"case": case, "size": size, **measure(functions, repeats, device)})
        keyed[case] = check_case(kornia, case, arguments)
    return {"times": rows, "keyed": keyed}


def check_case(kornia: Any, case: str, arguments: AugmentationArguments) -> dict[str, bool]:
    """Return which ways there are to vary an image alike in any batch."""
    if arguments.mixup_alpha:
        return {}  # An image is mixed with its neighbor: it depends on the batch by definition.
    ours = BatchAugmenter(arguments, 32, 102, seed=0)
    result = {
        "ours": check_keying(lambda x, rows, step: ours(x, torch.zeros(len(x)), rows, step)[0])
    }
    if kornia:
        theirs = build_kornia(kornia, case, 32)

        def seeded(pixels: torch.Tensor, _: np.ndarray, step: int) -> torch.Tensor:
            torch.manual_seed(step)
            return theirs(pixels.float() / 255)

        result["kornia, seeded by step"] = check_keying(seeded)
        if case == "crop + flip + jitter":
            result["kornia, parameters handed in"] = check_replay(theirs)
    return result


def format_times(times: dict[str, Any]) -> str:
    """Return the median, and behind it the best and the quartiles."""
    low, high = times["quartiles_ms"]
    return f"{times['median_ms']:.1f} ({times['best_ms']:.1f}; {low:.1f} to {high:.1f})"


def format_markdown(result: dict[str, Any]) -> str:
    """Return the table, and what the keys are."""
    lines = [
        "# Augmentation: ours and kornia's",
        "",
        f"Batch of {BATCH}, {result['environment']['device']}, {result['threads']} thread(s), "
        f"torch {result['environment']['packages']['torch']}, kornia "
        f"{result['kornia'] or 'not installed'}. Median ms (best; quartiles).",
        f"The machine's load average, this process included, was {result['load_average']:.1f}.",
        "",
        "| case | side | ours | kornia | kornia / ours |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["times"]:
        cells = [format_times(row[side]) if side in row else "" for side in ("ours", "kornia")]
        ratio = ""
        if "kornia" in row:
            ratio = f"{row['kornia']['median_ms'] / row['ours']['median_ms']:.1f}"
        lines.append(f"| {row['case']} | {row['size']} | {cells[0]} | {cells[1]} | {ratio} |")
    lines += ["", NOTE, "", "Same image, same step, same variation in another batch:", ""]
    for case, checks in result["keyed"].items():
        if checks:
            words = (f"{name}: {'yes' if holds else 'no'}" for name, holds in checks.items())
            lines.append(f"- {case}: {'; '.join(words)}")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    kornia = import_kornia()
    result = {
        "command": f"python -m benchmarks.augmentation --threads {options.threads} "
        f"--device {options.device}",
        "environment": describe_environment(options.device),
        "threads": options.threads,
        "kornia": importlib.metadata.version("kornia") if kornia else None,
        "batch": BATCH,
        **compare(kornia, options.device),
        "load_average": os.getloadavg()[0],
    }
    write_json(options.output_dir / "augmentation.json", result)
    table = format_markdown(result)
    write_text(options.output_dir / "augmentation.md", table)
    print(table)


if __name__ == "__main__":
    main()
