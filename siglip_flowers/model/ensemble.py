"""Average a model's weights: over its own training, or with those of its start."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from siglip_flowers.base.files import reading

AVERAGE_FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """Exponential moving average of a model's trained parameters, kept in float32.

    The decay is warmed up, as min(decay, (1 + n) / (10 + n)) after n updates, so that the average
    of a short run is not dominated by its beginning.

    As a callback of the Trainer, it is updated after every step.

    Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {
            name: parameter.detach().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def on_step_end(self, *_: Any, model: Any = None, **kwargs: Any) -> None:
        """Move the average towards the model's weights by one step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = dict(model.named_parameters())
        for name, average in self.weights.items():
            average.lerp_(parameters[name].detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's trained parameters with the average."""
        parameters = dict(model.named_parameters())
        for name, average in self.weights.items():
            parameters[name].copy_(average)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own afterwards."""
        parameters = dict(model.named_parameters())
        own = {name: parameters[name].detach().clone() for name in self.weights}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    parameters[name].copy_(value)

    def save(self, directory: Path) -> None:
        """Write the average and the number of its updates into a checkpoint."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.weights.items()}
        save_file(tensors, directory / AVERAGE_FILE, metadata={"updates": str(self.updates)})

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote, for the same model."""
        path = directory / AVERAGE_FILE
        with reading(path):
            with safe_open(path, framework="pt") as file:
                self.updates = int(file.metadata()["updates"])
            tensors = load_file(path)
            for name, average in self.weights.items():
                average.copy_(tensors[name])


def interpolate_weights(
    start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Return (1 - alpha) * start + alpha * tuned, tensor by tensor.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), equation 1.
    """
    assert start.keys() == tuned.keys()
    return {name: torch.lerp(start[name].float(), tuned[name].float(), alpha) for name in tuned}
