"""Muon for the matrices of the vision tower, AdamW for everything else, as one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from siglip_flowers.config import SiglipTrainingArguments
from siglip_flowers.config.training_options import parse_optim_args


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps the groups marked ``muon`` by :class:`torch.optim.Muon`, the others by AdamW.

    There is one list of groups and one state. The two optimizers only carry out the steps: they
    see what is in this one's ``param_groups`` and ``state`` at that moment, also after a schedule
    has changed the rates or a checkpoint was loaded.

    Args:
        groups: Parameter groups; each with ``muon`` (bool), ``params``, ``lr``, ``weight_decay``.
        muon: Settings of Muon, such as ``momentum`` and ``adjust_lr_fn``.
        adamw: Settings of AdamW, such as ``betas``, ``eps``, and ``fused``.

    Raises:
        ValueError: A group marked ``muon`` has a parameter that is not a matrix.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, muon: dict[str, Any], adamw: dict[str, Any]
    ) -> None:
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        # Either fills in the defaults of its own groups. No optimizer is made without parameters.
        self._parts: list[tuple[bool, torch.optim.Optimizer]] = []
        if matrices:
            self._parts.append((True, torch.optim.Muon(matrices, **muon)))
        if others:
            self._parts.append((False, torch.optim.AdamW(others, **adamw)))
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step with every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in self._parts:
            part.param_groups = [group for group in self.param_groups if group["muon"] == is_muon]
            part.state = self.state
            part.step()
        return loss


def build_muon(
    model: nn.Module, groups: list[dict[str, Any]], training: SiglipTrainingArguments
) -> MuonWithAdamW:
    """Return the optimizer of ``--optim muon`` for these parameter groups.

    Args:
        model: The model that the groups are of.
        groups: From :func:`~siglip_flowers.training.optimizer.build_parameter_groups`.
        training: Rates and ``optim_args``; without ``lr`` there, Muon has ``learning_rate``.
    """
    given = parse_optim_args(training.optim_args)
    settings: dict[str, Any] = {"adjust_lr_fn": given.get("adjust_lr_fn", "match_rms_adamw")}
    settings["momentum"] = float(given.get("momentum", 0.95))
    rate = float(given.get("lr", training.learning_rate))
    adamw = {"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon}
    return MuonWithAdamW(
        split_for_muon(model, groups, rate, training.learning_rate),
        muon=settings,
        adamw={**adamw, "fused": True},
    )


def split_for_muon(
    model: nn.Module, groups: list[dict[str, Any]], learning_rate: float, base_rate: float
) -> list[dict[str, Any]]:
    """Split the encoder's layer matrices off from their groups, and mark all groups.

    Muon takes the matrices under ``encoder.layers`` of the vision tower; LoRA's factors, the
    attention-pooling head, the text tower, embeddings, norms, biases and the classification head
    keep AdamW.

    Args:
        model: The model that the groups are of.
        groups: From :func:`~siglip_flowers.training.optimizer.build_parameter_groups`.
        learning_rate: Of Muon.
        base_rate: AdamW's rate of the encoder: a group at a multiple of it, as layer decay has
            them, gets the same multiple of Muon's.
    """
    matrices = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if "vision_model.encoder.layers." in name and parameter.ndim == 2 and "lora_" not in name
    }
    split: list[dict[str, Any]] = []
    for group in groups:
        chosen = [parameter for parameter in group["params"] if id(parameter) in matrices]
        rest = [parameter for parameter in group["params"] if id(parameter) not in matrices]
        if chosen:
            rate = learning_rate * group["lr"] / base_rate
            name = f"{group['name']}, Muon"
            split.append({**group, "name": name, "params": chosen, "lr": rate, "muon": True})
        if rest:
            split.append({**group, "params": rest, "muon": False})
    return split
