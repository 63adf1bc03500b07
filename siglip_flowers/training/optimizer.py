"""Which parameter gets which learning rate and weight decay; and Muon beside AdamW."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from siglip_flowers.base.environment import computes_bfloat16
from siglip_flowers.config.training import SiglipTrainingArguments
from siglip_flowers.config.training_options import parse_optim_args
from siglip_flowers.model.towers import locate_parameters

# Biases, layer norms and the three scalars or vectors that set a scale are not decayed.
UNDECAYED_SUFFIXES = ("bias", "logit_scale", "logit_bias", "probe", "position_embedding.weight")
# Of the iteration of Jordan et al.: the steepest slope at zero that stays bounded on [0, 1].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7
# How the rate of a matrix of m rows and n columns follows from that of its group: as Jordan et al.
# have it; or so that updates are as large as AdamW's (Liu et al. 2025, "Muon is scalable for LLM
# training", section 2.2).
ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}


def build_parameter_groups(
    model: nn.Module, training: SiglipTrainingArguments
) -> list[dict[str, Any]]:
    """Sort every trained parameter into exactly one group.

    Encoder and head (``classifier.``) each split into decayed and undecayed parameters. With a
    layer decay, each block of a tower has its own two groups, learning at ``learning_rate *
    layer_decay ** height``: the last norm and the pooling at the whole rate, the last encoder layer
    at one power, the embeddings at the most; each tower counts its own layers. The classification
    head keeps ``head_learning_rate``, temperature and bias of the contrastive loss
    ``learning_rate``.

    Groups carry ``name``, ``params``, ``lr`` and ``weight_decay``; empty groups are left out, and
    those of the highest rate of the encoder come first, since the Trainer logs the first one's.

    Source: Clark et al. 2020, "ELECTRA", section 3.1 and appendix; for image encoders Bao et al.
    2022, "BEiT".

    Raises:
        ValueError: With a layer decay, a parameter of no known block.
    """
    head_rate = training.head_learning_rate or training.learning_rate
    layer_decay = training.layer_decay or 1.0
    places = {} if training.layer_decay is None else locate_parameters(model)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = name.startswith("classifier.")
        rate = head_rate if is_head else training.learning_rate
        part, height = "head" if is_head else "encoder", 0
        if places and not is_head:
            height = places[name].height
            # "vision 0" is the top, "vision 1" the last layer, and so on down.
            part = f"{places[name].part} {height}"
            rate *= layer_decay**height
        decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED_SUFFIXES)
        group = groups.setdefault(
            f"{part}, {'decayed' if decayed else 'undecayed'}",
            {
                "params": [],
                "lr": rate,
                "weight_decay": training.weight_decay if decayed else 0.0,
                "order": (is_head, height),
            },
        )
        group["params"].append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[1].pop("order"))
    return [{"name": name, **group} for name, group in ordered]


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bring the singular values of matrices (N, m, n) close to 1, between about 0.7 and 1.2.

    By five Newton-Schulz iterations in ``dtype``: bfloat16, as Jordan et al. have it, where it is
    native, else float32. A processor that emulates bfloat16 takes 40 times as long with it.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    values = (matrices.mT if tall else matrices).to(dtype)
    values = values / values.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(ITERATIONS):
        gram = values @ values.mT
        factors = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        values = torch.baddbmm(values, factors, values, beta=a)
    return values.mT if tall else values


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps the groups marked ``muon`` by Muon, the others by AdamW.

    There is one list of groups and one state, also of what :class:`torch.optim.AdamW` steps: it
    sees what is in this one's ``param_groups`` and ``state`` at that moment, also after a schedule
    has changed the rates or a checkpoint was loaded.

    Args:
        groups: Parameter groups; each with ``muon`` (bool), ``params``, ``lr``, ``weight_decay``.
            The parameters of those marked ``muon`` are matrices.
        training: Settings of AdamW, and in ``optim_args`` those of Muon.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(self, groups: list[dict[str, Any]], training: SiglipTrainingArguments) -> None:
        given = parse_optim_args(training.optim_args)
        # Of Muon, in Nesterov's form.
        self.momentum = float(given.get("momentum", 0.95))
        self.adjust = ADJUSTMENTS[given.get("adjust_lr_fn", "match_rms_adamw")]
        native = computes_bfloat16(training.device.type)
        self.dtype = torch.bfloat16 if native else torch.float32
        # It fills in the defaults of its own groups.
        self._adamw = torch.optim.AdamW(
            [group for group in groups if not group["muon"]],
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            fused=True,
        )
        # Some schedules look for the rate there.
        super().__init__(groups, {"lr": training.learning_rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step with every parameter that has a gradient."""
        self._adamw.param_groups = [g for g in self.param_groups if not g["muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average = state["momentum_buffer"].lerp_(parameter.grad, 1 - self.momentum)
            direction = parameter.grad.lerp(average, self.momentum)
            alike.setdefault(parameter.shape, []).append((parameter, direction))
        for (rows, columns), pairs in alike.items():
            updates = orthogonalize(torch.stack([direction for _, direction in pairs]), self.dtype)
            rate = group["lr"] * self.adjust(rows, columns)
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-rate)


def split_for_muon(
    model: nn.Module, groups: list[dict[str, Any]], training: SiglipTrainingArguments
) -> list[dict[str, Any]]:
    """Split the encoder's layer matrices off from their groups, and mark all groups.

    Muon takes the matrices under ``encoder.layers`` of the vision tower; LoRA's factors, the
    attention-pooling head, the text tower, embeddings, norms, biases and the classification head
    keep AdamW. Without ``lr`` in ``optim_args``, Muon has ``learning_rate``; a group at a multiple
    of that, as layer decay has them, gets the same multiple of Muon's rate.
    """
    rate = float(parse_optim_args(training.optim_args).get("lr", training.learning_rate))
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
            name, own = f"{group['name']}, Muon", rate * group["lr"] / training.learning_rate
            split.append({**group, "name": name, "params": chosen, "lr": own, "muon": True})
        if rest:
            split.append({**group, "params": rest, "muon": False})
    return split
