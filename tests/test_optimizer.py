"""Which parameter is decayed, and at which rate it learns."""

import pytest
import torch

from siglip_flowers.model.freezing import freeze
from siglip_flowers.model.loading import load_classifier
from siglip_flowers.training.optimizer import build_parameter_groups


def group(model):
    return build_parameter_groups(
        model, learning_rate=1e-5, head_learning_rate=1e-3, weight_decay=0.05
    )


def name_groups(model):
    """Return {group name: (lr, weight decay, {parameter names})}."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        g["name"]: (g["lr"], g["weight_decay"], {names[id(p)] for p in g["params"]})
        for g in group(model)
    }


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("trainable", ["all", "head", "last:2"])
@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_every_trained_parameter_is_in_exactly_one_group(nano_dir, head, trainable, pooling):
    model = load_classifier(str(nano_dir), ["a", "b"], head=head, pooling=pooling)
    freeze(model.vision_model, trainable)
    grouped = [id(p) for g in group(model) for p in g["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(trained)
    torch.optim.AdamW(group(model))  # refuses a parameter in two groups


def test_only_matrices_are_decayed_and_only_the_head_has_the_heads_rate(nano_dir):
    model = load_classifier(str(nano_dir), ["a", "b"])
    groups = name_groups(model)
    assert {name: entry[:2] for name, entry in groups.items()} == {
        "encoder, decayed": (1e-5, 0.05),
        "encoder, undecayed": (1e-5, 0.0),
        "head, decayed": (1e-3, 0.05),
        "head, undecayed": (1e-3, 0.0),
    }
    assert groups["head, decayed"][2] == {"classifier.weight"}
    assert groups["head, undecayed"][2] == {"classifier.bias"}
    layer = "vision_model.encoder.layers.0."
    pooling = "vision_model.head."
    expected = {
        "vision_model.embeddings.patch_embedding.weight",
        f"{layer}self_attn.q_proj.weight",
        f"{layer}mlp.fc1.weight",
        f"{pooling}attention.in_proj_weight",
        f"{pooling}attention.out_proj.weight",
        f"{pooling}mlp.fc2.weight",
    }
    assert expected <= groups["encoder, decayed"][2]
    expected = {
        "vision_model.embeddings.patch_embedding.bias",
        "vision_model.embeddings.position_embedding.weight",
        f"{layer}layer_norm1.weight",
        f"{layer}layer_norm1.bias",
        f"{layer}self_attn.q_proj.bias",
        "vision_model.post_layernorm.weight",
        f"{pooling}probe",
        f"{pooling}attention.in_proj_bias",
        f"{pooling}layernorm.weight",
    }
    assert expected <= groups["encoder, undecayed"][2]
    norms = {name for name, _ in model.named_parameters() if "norm" in name or "bias" in name}
    assert norms <= groups["encoder, undecayed"][2] | groups["head, undecayed"][2]


def test_temperature_and_bias_of_the_cosine_head_are_not_decayed(nano_dir):
    groups = name_groups(load_classifier(str(nano_dir), ["a", "b"], head="cosine"))
    assert groups["head, decayed"][2] == {"classifier.class_embeddings"}
    assert groups["head, undecayed"][2] == {"classifier.logit_scale", "classifier.logit_bias"}


def test_a_frozen_encoder_leaves_only_the_heads_groups(nano_dir):
    model = load_classifier(str(nano_dir), ["a", "b"])
    freeze(model.vision_model, "head")
    assert set(name_groups(model)) == {"head, decayed", "head, undecayed"}
