"""Every published SigLIP and SigLIP 2: saved as the Hub has it, loaded by us, weight for weight.

Towers are cut to two layers and an eighth of their width; image size, patch size and number of
heads are those published.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch.nn import functional
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    Siglip2ForImageClassification,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2VisionModel,
    SiglipForImageClassification,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionModel,
)

from siglip_flowers.base.errors import InputError
from siglip_flowers.data.pixels.tensors import PixelNormalizer, read_form
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.model.classifier import to_native
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)
from tests.small_flowers import read_images

NAMES = ["rose", "tulip", "daisy"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
# Width, layers, heads, width of the MLP.
TOWERS = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giant-opt": (1536, 40, 16, 6144),
}


@dataclass(frozen=True)
class Shape:
    """A published checkpoint: ``size`` is the image's side, or the patches of NaFlex."""

    name: str
    tower: str
    patch: int
    size: int

    @property
    def naflex(self) -> bool:
        return self.name.endswith("naflex")


PUBLISHED = {
    ("siglip", "base", 16): (224, 256, 384, 512), ("siglip", "large", 16): (256, 384),
    ("siglip", "so400m", 14): (224, 384), ("siglip2", "base", 32): (256,),
    ("siglip2", "base", 16): (224, 256, 384, 512), ("siglip2", "large", 16): (256, 384, 512),
    ("siglip2", "so400m", 14): (224, 384), ("siglip2", "so400m", 16): (256, 384, 512),
    ("siglip2", "giant-opt", 16): (256, 384),
}  # fmt: skip
SHAPES = [
    Shape(f"{generation}-{tower}-patch{patch}-{size}", tower, patch, size)
    for (generation, tower, patch), sizes in PUBLISHED.items()
    for size in sizes
] + [
    Shape("siglip-base-patch16-256-multilingual", "base", 16, 256),
    Shape("siglip-so400m-patch16-256-i18n", "so400m", 16, 256),
    Shape("siglip2-base-patch16-naflex", "base", 16, 256),
    Shape("siglip2-so400m-patch16-naflex", "so400m", 16, 256),
]
BY_NAME = {shape.name: shape for shape in SHAPES}
# One of each kind of file and tower; all the others are slow.
SAMPLE = ("siglip-so400m-patch14-224", "siglip2-so400m-patch16-naflex")


def describe_vision(shape: Shape, *, divisor: int = 1, layers: int | None = None) -> dict:
    """Return the vision_config of the Hub's config.json, of which defaults are left out."""
    width, depth, heads, mlp = TOWERS[shape.tower]
    kind = "siglip2_vision_model" if shape.naflex else "siglip_vision_model"
    size = {"num_patches": shape.size} if shape.naflex else {"image_size": shape.size}
    return {
        "model_type": kind, "hidden_size": width // divisor, "intermediate_size": mlp // divisor,
        "num_hidden_layers": layers or depth, "num_attention_heads": heads,
        "patch_size": shape.patch, **size,
    }  # fmt: skip


def describe_config(shape: Shape) -> dict:
    """Return the Hub's config.json, shrunk; the small text tower ends in the vision width."""
    family = "siglip2" if shape.naflex else "siglip"
    vision = describe_vision(shape, divisor=8, layers=2)
    text = {
        "model_type": f"{family}_text_model", "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "projection_size": vision["hidden_size"],
    }  # fmt: skip
    return {
        "architectures": ["Siglip2Model" if shape.naflex else "SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": family,
        "text_config": text,
        "torch_dtype": "float32",
        "vision_config": vision,
    }


def describe_processor(shape: Shape, suffix: str) -> dict:
    size = {"size": {"height": shape.size, "width": shape.size}}
    if shape.naflex:
        size = {"max_num_patches": shape.size, "patch_size": shape.patch}
    return {
        "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": f"Siglip{'2' * shape.naflex}ImageProcessor{suffix}",
        "image_std": [0.5, 0.5, 0.5], "processor_class": f"Siglip{'2' * shape.naflex}Processor",
        "resample": 3 if shape.name.startswith("siglip-") else 2,
        "rescale_factor": 0.00392156862745098, **size,
    }  # fmt: skip


def write_checkpoint(shape: Shape, folder: Path) -> dict[str, torch.Tensor]:
    """Write random weights as the Hub has them, in shards for the larger ones; return them."""
    (folder / "config.json").write_text(json.dumps(describe_config(shape)))
    suffix = "Fast" if shape.size == 384 else ""
    (folder / "preprocessor_config.json").write_text(json.dumps(describe_processor(shape, suffix)))
    with torch.device("meta"):
        model_class = Siglip2Model if shape.naflex else SiglipModel
        model = model_class(AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(len(shape.name) + shape.size)
    weights = {}
    for name, value in model.state_dict().items():
        noise = torch.empty(value.shape).normal_(std=0.02, generator=generator)
        weights[name] = noise + 1 if "norm" in name and name.endswith("weight") else noise
    total = sum(4 * value.numel() for value in weights.values())
    shards = shape.tower in ("so400m", "giant-opt")
    save_torch_state_dict(weights, folder, max_shard_size=total // 2 if shards else "5GB")
    assert (folder / "model.safetensors.index.json").exists() is shards
    return weights


@pytest.fixture(scope="module")
def photograph(flowers_dir):
    """A photograph that is wider than high."""
    return read_images(flowers_dir, 1)[0].resize((96, 64))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in BY_NAME],
)
def test_published_shape_loads_weight_for_weight(name, photograph, tmp_path):
    shape = BY_NAME[name]
    weights = write_checkpoint(shape, tmp_path)
    # Names of the Hub's files, which a version of transformers might change.
    assert {name.partition(".")[0] for name in weights} == {
        *("vision_model", "text_model", "logit_scale", "logit_bias")
    }
    vision = {
        name.removeprefix("vision_model."): value
        for name, value in weights.items()
        if name.startswith("vision_model.")
    }
    processor = load_image_processor(str(tmp_path))
    own_class = Siglip2ImageProcessorPil if shape.naflex else SiglipImageProcessorPil
    assert type(processor) is own_class
    pixels = read_form(processor).resize(photograph)[None]
    inputs = PixelNormalizer(processor).prepare(pixels)
    expected_inputs = own_class.from_pretrained(tmp_path)(photograph, return_tensors="pt")
    for key, value in expected_inputs.items():
        assert torch.equal(inputs[key], value), key
    tower_class = Siglip2VisionModel if shape.naflex else SiglipVisionModel
    tower = tower_class.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        outputs = tower(**inputs)
    tokens = outputs.last_hidden_state[0]
    if shape.naflex:
        tokens = tokens[: inputs["spatial_shapes"].prod()]
    for pooling, features in (("map", outputs.pooler_output), ("mean", tokens.mean(0)[None])):
        model = load_classifier(str(tmp_path), NAMES, pooling=pooling).eval()
        assert type(model.vision_model) is tower_class
        state = model.vision_model.state_dict()
        wanted = {
            name: value
            for name, value in vision.items()
            if pooling == "map" or not name.startswith("head.")
        }
        assert state.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(state[key], value), key
        head = model.classifier
        with torch.no_grad():
            torch.testing.assert_close(
                model(**inputs).logits, functional.linear(features, head.weight, head.bias), **CLOSE
            )


@pytest.mark.parametrize("name", ["siglip2-base-patch32-256", "siglip2-so400m-patch16-naflex"])
def test_saved_classifier_exports_and_runs_like_transformers_own(name, photograph, tmp_path):
    write_checkpoint(BY_NAME[name], tmp_path)
    model = load_classifier(str(tmp_path), NAMES, pooling="mean").eval()
    processor = load_image_processor(str(tmp_path))
    inputs = processor(photograph, return_tensors="pt")
    saved, native = tmp_path / "saved", tmp_path / "native"
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    to_native(model).save_pretrained(native)
    naflex = BY_NAME[name].naflex
    own_class = Siglip2ForImageClassification if naflex else SiglipForImageClassification
    with torch.no_grad():
        plain = own_class.from_pretrained(native).eval()
        assert plain.config.id2label == dict(enumerate(NAMES))
        expected = plain(**inputs).logits
        read_back = load_saved_classifier(str(saved))
        torch.testing.assert_close(read_back(**inputs).logits, expected, **CLOSE)
    again = load_image_processor(str(saved))
    pixels = read_form(again).resize(photograph)[None]
    engine = InferenceEngine(read_back, again, device=torch.device("cpu"))
    torch.testing.assert_close(engine.classify(pixels), expected, **CLOSE)


def test_own_size_is_accepted_where_patches_do_not_divide_it(tmp_path):
    """so400m/14 at 384 pixels has 27 x 27 patches, which cover 378."""
    write_checkpoint(BY_NAME["siglip-so400m-patch14-384"], tmp_path)
    model = load_classifier(str(tmp_path), NAMES, image_size=384)
    assert model.vision_model.embeddings.position_embedding.weight.shape[0] == 27 * 27


# The wrong class


def write_small(name, folder):
    folder.mkdir()
    write_checkpoint(BY_NAME[name], folder)
    return folder


@pytest.fixture
def fixed(tmp_path):
    return write_small("siglip2-base-patch16-256", tmp_path / "fixed")


@pytest.fixture
def naflex(tmp_path):
    return write_small("siglip2-base-patch16-naflex", tmp_path / "naflex")


def relabel(folder, *, as_naflex):
    """Give a checkpoint the labels of the other kind, throughout; shapes of positions agree."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    family = "siglip2" if as_naflex else "siglip"
    size = {"num_patches": 256} if as_naflex else {"image_size": 256}
    config["model_type"] = family
    config["vision_config"] |= {"model_type": f"{family}_vision_model"} | size
    config["text_config"]["model_type"] = f"{family}_text_model"
    path.write_text(json.dumps(config))


def test_weights_labeled_as_the_other_kind_are_refused(fixed, naflex):
    for folder in (fixed, naflex):
        relabel(folder, as_naflex=folder == fixed)
        with pytest.raises(InputError, match=r"of the shape .*patch_embedding\.weight"):
            load_classifier(str(folder), NAMES)


def test_the_other_kinds_image_processor_is_refused(fixed, naflex):
    name = "preprocessor_config.json"
    mine, other = (fixed / name).read_text(), (naflex / name).read_text()
    (fixed / name).write_text(other)
    (naflex / name).write_text(mine)
    square, patches = "a fixed-resolution SigLIP", "a NaFlex SigLIP 2"
    with pytest.raises(InputError, match=f"is for {patches}, but the model is {square}"):
        load_image_processor(str(fixed))
    with pytest.raises(InputError, match=f"is for {square}, but the model is {patches}"):
        load_image_processor(str(naflex))


def test_inputs_of_the_other_kind_are_refused(fixed, naflex, photograph):
    images = {}
    for folder in (fixed, naflex):
        processor = load_image_processor(str(folder))
        images[folder] = dict(processor(photograph, return_tensors="pt"))
    with pytest.raises(InputError, match="The model is a fixed-resolution SigLIP, but the inputs"):
        load_classifier(str(fixed), NAMES)(**images[naflex])
    with pytest.raises(InputError, match="The model is a NaFlex SigLIP 2, but the inputs"):
        load_classifier(str(naflex), NAMES)(**images[fixed])


@pytest.mark.parametrize("load", [lambda path: load_classifier(path, NAMES), load_image_processor])
def test_another_family_is_refused_by_its_name(load, fixed):
    """The weights do not even matter."""
    CLIPVisionConfig().save_pretrained(fixed)
    with pytest.raises(InputError, match="not a SigLIP model.*'clip_vision_model'"):
        load(str(fixed))
