"""Which parameter gets which learning rate and weight decay."""

from typing import Any

from torch import nn

from siglip_flowers.model.towers import locate_parameters

# Biases, layer norms and the three scalars or vectors that set a scale are not decayed.
UNDECAYED_SUFFIXES = ("bias", "logit_scale", "logit_bias", "probe", "position_embedding.weight")


def build_parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    head_learning_rate: float,
    weight_decay: float,
    layer_decay: float | None = None,
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
    places = None if layer_decay is None else locate_parameters(model)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = name.startswith("classifier.")
        rate = head_learning_rate if is_head else learning_rate
        part, height = "head" if is_head else "encoder", 0
        if places is not None and layer_decay is not None and not is_head:
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
                "weight_decay": weight_decay if decayed else 0.0,
                "order": (is_head, height),
            },
        )
        group["params"].append(parameter)
    ordered = sorted(groups.items(), key=lambda item: item[1].pop("order"))
    return [{"name": name, **group} for name, group in ordered]
