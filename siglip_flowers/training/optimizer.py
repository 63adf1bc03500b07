"""Which parameter gets which learning rate and weight decay."""

from typing import Any

from torch import nn

# Biases, layer norms and the three scalars or vectors that set a scale are not decayed.
UNDECAYED_SUFFIXES = ("bias", "logit_scale", "logit_bias", "probe", "position_embedding.weight")


def build_parameter_groups(
    model: nn.Module, *, learning_rate: float, head_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Sort every trained parameter into exactly one of four groups.

    Encoder and head (``classifier.``) each split into decayed and undecayed parameters. Groups
    carry ``name``, ``params``, ``lr`` and ``weight_decay``; empty groups are left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "head" if name.startswith("classifier.") else "encoder"
        decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED_SUFFIXES)
        group = groups.setdefault(
            f"{part}, {'decayed' if decayed else 'undecayed'}",
            {
                "params": [],
                "lr": head_learning_rate if part == "head" else learning_rate,
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items()]
