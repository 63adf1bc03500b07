"""Which parameter is decayed, and at which rate it learns."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from siglip_flowers.config import ModelArguments
from siglip_flowers.model import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.adapters import add_adapters
from siglip_flowers.model.contrastive import load_contrastive
from siglip_flowers.model.loading import load_classifier
from siglip_flowers.model.towers import freeze
from siglip_flowers.training.optimizer import build_parameter_groups
from tests.small_flowers import build_flowers
from tests.small_trainers import start_trainer
from tests.test_family import SHAPES, describe_vision

# Sizes of images and patches change no group.
TOWERS = {(shape.tower, shape.naflex): shape for shape in SHAPES}.values()


@pytest.fixture(scope="module")
def data(flowers_dir):
    return build_flowers(flowers_dir, train=8)


def group(model, **options):
    rates = {"learning_rate": 1e-5, "head_learning_rate": 1e-3, "weight_decay": 0.05}
    training = SimpleNamespace(**{**rates, "layer_decay": None, **options})
    return build_parameter_groups(model, training)


def name_groups(model, groups):
    """Return {group name: (lr, weight decay, {parameter names})}."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        g["name"]: (g["lr"], g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in groups
    }


def list_rates(model, groups):
    """Return (name, learning rate, weight decay) of every parameter in a group."""
    groups = name_groups(model, groups).values()
    return [(name, rate, decay) for rate, decay, names in groups for name in names]


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("trainable", ["all", "head", "last:1"])
@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_every_trained_parameter_is_in_exactly_one_group(tiny_dir, head, trainable, pooling):
    model = load_classifier(str(tiny_dir), ["a", "b"], head=head, pooling=pooling)
    freeze(model.vision_model, trainable)
    check_partition(model, group(model))
    if trainable == "head":
        assert set(name_groups(model, group(model))) == {"head, decayed", "head, undecayed"}


def test_only_matrices_are_decayed_and_only_the_head_has_the_heads_rate(tiny_dir):
    model = load_classifier(str(tiny_dir), ["a", "b"])
    groups = name_groups(model, group(model))
    assert {name: entry[:2] for name, entry in groups.items()} == {
        "encoder, decayed": (1e-5, 0.05),
        "encoder, undecayed": (1e-5, 0.0),
        "head, decayed": (1e-3, 0.05),
        "head, undecayed": (1e-3, 0.0),
    }
    assert groups["head, decayed"][2] == {"classifier.weight"}
    assert groups["head, undecayed"][2] == {"classifier.bias"}
    expected = {
        *("encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.0.mlp.fc1.weight"),
        *("embeddings.patch_embedding.weight", "head.attention.in_proj_weight"),
    }
    assert {f"vision_model.{name}" for name in expected} <= groups["encoder, decayed"][2]
    expected = {"embeddings.position_embedding.weight", "head.probe", "head.layernorm.weight"}
    assert {f"vision_model.{name}" for name in expected} <= groups["encoder, undecayed"][2]
    norms = {name for name, _ in model.named_parameters() if "norm" in name or "bias" in name}
    assert norms <= groups["encoder, undecayed"][2] | groups["head, undecayed"][2]


def place_by_hand(name, layers):
    """Return how many blocks stand above a parameter, from its name alone."""
    if ".embeddings." in name:
        return layers + 1
    if ".encoder.layers." in name:
        return layers - int(name.split(".encoder.layers.")[1].split(".")[0])
    return 0


def group_with_decay(model):
    rates = {"learning_rate": 1.0, "head_learning_rate": 7.0, "weight_decay": 0.1}
    return group(model, **rates, layer_decay=0.5)


def check_partition(model, groups):
    """Every trained parameter is in exactly one group, every frozen one in none."""
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trained


def check_decayed(model, groups):
    """Norms and biases, by the modules that own them, are without weight decay."""
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, torch.nn.LayerNorm) or "bias" in name:
                assert decay[id(parameter)] == 0.0
            elif isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                assert decay[id(parameter)] == 0.1


@pytest.mark.parametrize("pooling", ["map", "mean"])
@pytest.mark.parametrize("shape", TOWERS, ids=lambda shape: shape.name)
def test_layer_decay_of_every_published_tower(shape, pooling):
    """At full depth, on the meta device: only names and numbers of dimensions count."""
    vision = describe_vision(shape, divisor=8)
    layers = vision["num_hidden_layers"]
    vision_config = AutoConfig.for_model(**vision)
    with torch.device("meta"):
        model = SiglipClassifier(SiglipClassifierConfig(vision_config, pooling=pooling))
    groups = group_with_decay(model)
    check_partition(model, groups)
    check_decayed(model, groups)
    for name, rate, _ in list_rates(model, groups):
        is_head = name.startswith("classifier.")
        assert rate == (7.0 if is_head else 0.5 ** place_by_hand(name, layers)), name
    rates = sorted({group["lr"] for group in groups})
    assert len(rates) == layers + 3  # embeddings, layers, top, head
    assert rates[0] == 0.5 ** (layers + 1)  # the embeddings are slowest, the head fastest
    assert groups[0]["lr"] == 1.0  # what the Trainer logs


def test_layer_decay_counts_the_layers_of_each_tower(nano_dir):
    model = load_contrastive(str(nano_dir), ["a", "b"], [["a"], ["b"]])
    groups = group_with_decay(model)
    check_partition(model, groups)
    check_decayed(model, groups)
    rates = {name: rate for name, rate, _ in list_rates(model, groups)}
    for name, rate in rates.items():
        layers = 2 if name.startswith("text_model.") else 8
        assert rate == 0.5 ** place_by_hand(name, layers), name
    assert rates["text_model.final_layer_norm.weight"] == rates["text_model.head.weight"] == 1.0
    assert rates["text_model.embeddings.token_embedding.weight"] == 0.5**3
    assert rates["logit_scale"] == rates["logit_bias"] == 1.0
    model.text_model.requires_grad_(False)
    check_partition(model, group_with_decay(model))


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_decay_with_their_layers(nano_dir, use_dora):
    pytest.importorskip("peft")
    model = load_classifier(str(nano_dir), ["a", "b"])
    options = ModelArguments(model_name_or_path=str(nano_dir), lora_r=2, use_dora=use_dora)
    add_adapters(model, options)
    groups = group_with_decay(model)
    check_partition(model, groups)
    for name, rate, decay in list_rates(model, groups):
        is_head = name.startswith("classifier.")
        assert rate == (7.0 if is_head else 0.5 ** place_by_hand(name, 8)), name
        assert (decay == 0.0) == (model.get_parameter(name).ndim == 1), name


def test_a_parameter_of_no_known_block_gets_no_arbitrary_rate(tiny_dir):
    model = load_classifier(str(tiny_dir), ["a", "b"])
    model.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'adapter.weight' does not belong to a known part"):
        group_with_decay(model)


def test_the_trainer_gives_every_block_its_rate(nano_dir, data, tmp_path):
    rates = {"learning_rate": 1e-4, "head_learning_rate": 1e-3, "layer_decay": 0.5}
    trainer = start_trainer(nano_dir, data, tmp_path, **rates)
    groups = {group["name"]: group["lr"] for group in trainer.create_optimizer().param_groups}
    assert groups["head, decayed"] == 1e-3
    assert groups["vision 0, decayed"] == 1e-4
    assert groups["vision 8, undecayed"] == pytest.approx(1e-4 * 0.5**8)
