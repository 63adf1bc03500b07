"""Skip residual branches at random while training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def add_stochastic_depth(layers: nn.ModuleList, rate: float) -> None:
    """Let each image skip branches of the encoder layers, attention and MLP apart, in training.

    Of L layers the l-th, counted from 1, drops a branch with probability ``rate * l / L``; a branch
    that is kept is divided by the probability of keeping it, so that nothing changes in evaluation.
    The numbers come from torch's generator of the device, whose state is in every checkpoint. The
    branches get forward hooks: no parameter, no name and no saved file changes.

    Source: Huang et al. 2016, "Deep networks with stochastic depth", equation 4; dropped image by
    image and rescaled in training as in timm.
    """
    layer: Any
    for number, layer in enumerate(layers, start=1):
        hook = _build_hook(rate * number / len(layers))
        layer.self_attn.register_forward_hook(hook)
        layer.mlp.register_forward_hook(hook)


def _build_hook(rate: float) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training:
            return output
        # Attention returns its output together with its weights.
        if isinstance(output, tuple):
            return (drop_branch(output[0], rate), *output[1:])
        return drop_branch(output, rate)

    return hook


def drop_branch(branch: Tensor, rate: float) -> Tensor:
    """Set the rows of a branch's output (B, N, D) to zero with a probability, scale the others."""
    kept = 1.0 - rate
    mask = torch.rand(branch.shape[0], 1, 1, device=branch.device) < kept
    return branch * mask.to(branch.dtype) / kept
