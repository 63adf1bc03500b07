"""Compare the package's augmentation with kornia's: speed, and whether the batch matters.

    python -m benchmarks.augmentation [--threads 2]

Crop, flip and color jitter of the same uint8 batch, in turns. kornia is optional: without it only
the package's own augmentation is measured. Writes augmentation_<device>.json, .md and .png.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Sample, Stopwatch, alternate, compare, select_device, summarize
from benchmarks.report import draw_bars, format_table, write_report
from siglip_flowers.config import AugmentationArguments
from siglip_flowers.data.augmentation import BatchAugmenter

BATCH = 64
SIZES = (64, 224)
ROUNDS = 20
CROP_MIN_SCALE, JITTER = 0.35, 0.3


def build_kornia(size: int) -> Callable[[torch.Tensor, np.ndarray, int], torch.Tensor] | None:
    """Return kornia's counterpart, seeded by the step, or None if kornia cannot be imported."""
    try:
        augmentation: Any = importlib.import_module("kornia.augmentation")
    except ImportError as error:
        print(f"kornia is left out: {error}")
        return None
    pipeline = augmentation.AugmentationSequential(
        augmentation.RandomResizedCrop(
            (size, size), scale=(CROP_MIN_SCALE, 1.0), ratio=(3 / 4, 4 / 3)
        ),
        augmentation.RandomHorizontalFlip(),
        augmentation.ColorJitter(JITTER, JITTER, JITTER, 0.0),
    )

    def augment(pixels: torch.Tensor, _: np.ndarray, step: int) -> torch.Tensor:
        torch.manual_seed(step)
        result: torch.Tensor = pipeline(pixels.float() / 255)
        return result

    return augment


def depends_on_batch(augment: Callable[..., torch.Tensor], device: torch.device) -> bool:
    """Return whether an image at a given step looks different in another batch."""
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, device=device)
    order = np.array([5, 2, 7])
    whole, part = augment(pixels, np.arange(8), 1), augment(pixels[order], order, 1)
    return not torch.allclose(whole[order], part)


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = select_device()
    arguments = AugmentationArguments(crop_min_scale=CROP_MIN_SCALE, color_jitter=JITTER)
    results: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        pixels = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=device)

        def ours(pixels: torch.Tensor, rows: np.ndarray, step: int, size: int) -> torch.Tensor:
            labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
            return BatchAugmenter(arguments, size, 102, seed=0)(pixels, labels, rows, step)[0]

        functions: dict[str, Callable[..., torch.Tensor]] = {
            "ours": lambda *batch, size=size: ours(*batch, size=size)
        }
        kornia = build_kornia(size)
        if kornia is not None:
            functions["kornia"] = kornia

        def run(augment: Callable[..., torch.Tensor], batch: torch.Tensor) -> Sample:
            with Stopwatch(device) as watch:
                augment(batch, np.arange(BATCH), 3)
            return Sample(BATCH, watch.seconds)

        samples = alternate(
            {
                name: lambda augment=augment, batch=pixels: run(augment, batch)
                for name, augment in functions.items()
            },
            ROUNDS,
        )
        for name, augment in functions.items():
            results[f"{name}, {size} px"] = {
                **summarize(samples[name]),
                "speed_over_ours": compare(samples, name, "ours"),
                "depends_on_batch": depends_on_batch(augment, device),
            }
    table = format_table(
        ["augmentation", "images/s", "speed / ours", "an image depends on its batch"],
        [
            [
                name,
                row["images_per_second"],
                row["speed_over_ours"],
                "yes" if row["depends_on_batch"] else "no",
            ]
            for name, row in results.items()
        ],
    )
    print(table)
    figure = draw_bars("Crop, flip and color jitter", "images/s", results, {})
    command = f"python -m benchmarks.augmentation --threads {options.threads}"
    settings = {"batch": BATCH, "rounds": ROUNDS}
    write_report("augmentation", device, command, settings, results, table, figure)


if __name__ == "__main__":
    main()
