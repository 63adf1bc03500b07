"""Which kernels train fastest: attention, precision, compilation.

    python -m benchmarks.kernels

One training step (forward, backward, clip, step) of a randomly initialized SigLIP on a batch that
lies on the device, in every combination of eager and sdpa attention, float32 and bfloat16 autocast,
plain and compiled. The time that compiling takes is given apart. Writes kernels_<device>.json and
.md to --output_dir.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import SiglipVisionConfig

from benchmarks.harness import Sample, Stopwatch, alternate, compare, select_device, summarize
from benchmarks.images import base_config, make_tower
from benchmarks.report import RESULTS, format_table, write_report
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig

CLASSES = 102
REFERENCE = "sdpa, float32"


def small_config(image_size: int) -> SiglipVisionConfig:
    """Return a tower of 8 layers x 192 with patches of 8 pixels."""
    return make_tower(192, 768, 8, 3, image_size, 8)


class Arm:
    """One combination, ready to train; the first step, which may compile, is timed apart."""

    def __init__(
        self, options: argparse.Namespace, device: torch.device, attention: str, bf16: bool
    ) -> None:
        build = base_config if options.size == "base" else small_config
        vision_config = build(options.image_size)
        config = SiglipClassifierConfig(
            vision_config=vision_config, id2label={n: str(n) for n in range(CLASSES)}
        )
        torch.manual_seed(0)
        self.model = SiglipClassifier(config).train().to(device)
        self.model.set_attn_implementation(attention)
        self.forward: Callable[..., object] = self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        shape = (options.batch_size, 3, options.image_size, options.image_size)
        self.pixels = torch.randn(shape, device=device)
        self.labels = torch.arange(options.batch_size, device=device) % CLASSES
        self.device, self.bf16, self.steps = device, bf16, options.steps

    def compile(self) -> None:
        """Compile the model at its next step."""
        self.forward = torch.compile(self.model)

    def step(self) -> None:
        """Train on the batch once."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.forward(pixel_values=self.pixels).logits  # type: ignore[attr-defined]
            loss = nn.functional.cross_entropy(logits, self.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> Sample:
        with Stopwatch(self.device) as watch:
            for _ in range(self.steps):
                self.step()
        return Sample(self.steps * len(self.labels), watch.seconds)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("small", "base"), default="small")
    parser.add_argument("--image_size", type=int, help="Default: 64 small, 224 base.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="Steps of a round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.image_size = options.image_size or (224 if options.size == "base" else 64)
    device = select_device()
    arms: dict[str, Callable[[], Sample]] = {}
    first_step: dict[str, float] = {}
    for bf16 in (False, True):
        for attention in ("sdpa", "eager"):
            for change in ("", ", compiled"):
                arm = Arm(options, device, attention, bf16)
                name = f"{attention}, {'bfloat16' if bf16 else 'float32'}{change}"
                if change:
                    arm.compile()
                with Stopwatch(device) as watch:
                    arm.step()
                first_step[name] = watch.seconds
                arms[name] = arm
    samples = alternate(arms, options.rounds)
    results = {
        name: {
            **summarize(samples[name]),
            "first_step_seconds": first_step[name],
            "ratio": compare(samples, name, REFERENCE),
        }
        for name in arms
    }
    table = format_table(
        ["kernels", "images/s", f"against {REFERENCE}", "first step, s"],
        [
            [name, round(row["images_per_second"]), row["ratio"], row["first_step_seconds"]]
            for name, row in results.items()
        ],
    )
    print(table)
    command = "python -m benchmarks.kernels " + " ".join(sys.argv[1:])
    settings = {name: value for name, value in vars(options).items() if name != "output_dir"}
    write_report(
        *("kernels", device, command.strip(), settings, results, table),
        directory=options.output_dir,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
