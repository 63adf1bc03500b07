"""NaFlex: patches of images at their own aspect ratio, against transformers' own classes."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2VisionModel,
    pipeline,
)

from siglip_flowers.base.prompts import build_prompts
from siglip_flowers.commands.eval import main as run_eval
from siglip_flowers.commands.predict import main as run_predict
from siglip_flowers.commands.train import main as run_train
from siglip_flowers.config import AugmentationArguments, DataArguments
from siglip_flowers.data.augmentation import BatchAugmenter, PatchAugmenter
from siglip_flowers.data.pixels.patches import (
    PatchBudget,
    pack_image,
    pack_patches,
    shrink_grids,
    unpack_patches,
)
from siglip_flowers.data.pixels.tensors import (
    PixelDataset,
    PixelForm,
    PixelNormalizer,
    open_pixels,
    read_form,
)
from siglip_flowers.inference.classifier import SiglipImageClassifier
from siglip_flowers.inference.engine import InferenceEngine
from siglip_flowers.model.contrastive import load_contrastive
from siglip_flowers.model.heads import load_zero_shot_classifier
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)
from siglip_flowers.model.text_head import load_tokenizer, tokenize_prompts
from tests.small_flowers import make_rows, read_images
from tests.small_runs import CLASSES, make_folder, small_options

NAMES = ["rose", "tulip", "daisy"]
SIDE, PATCHES, WIDTH = 4, 20, 32
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint(nano_dir, tmp_path_factory):
    """A two-tower NaFlex checkpoint as the Hub has it, with the tokenizer of the small SigLIP."""
    folder = tmp_path_factory.mktemp("naflex")
    torch.manual_seed(0)
    vision = {"patch_size": SIDE, "num_patches": 16}
    text = {"vocab_size": 1024, "max_position_embeddings": 16, "projection_size": WIDTH}
    shape = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2}
    shape["num_attention_heads"] = 4
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = Siglip2Config(vision_config=vision | shape, text_config=text | shape | special)
    model = Siglip2Model(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=SIDE, max_num_patches=PATCHES).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((nano_dir / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def images(flowers_dir):
    """Real photographs cut and stretched to many shapes."""
    sizes = [(64, 64), (250, 166), (31, 200), (64, 32), (1, 1), (3, 300), (200, 2), (65, 63)]
    photographs = read_images(flowers_dir, len(sizes))
    return [one.resize(size) for one, size in zip(photographs, sizes, strict=True)]


def pack(images, budget=None):
    budget = budget or PatchBudget(SIDE, PATCHES)
    return torch.stack([pack_image(one, budget, Image.Resampling.BILINEAR) for one in images])


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 16, "max_num_patches": 256},
        {"patch_size": 14, "max_num_patches": 7, "resample": Image.Resampling.BICUBIC},
        {"max_num_patches": 64, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]},
    ],
)
def test_inputs_equal_the_checkpoints_processor_bit_for_bit(options, images, tmp_path):
    Siglip2ImageProcessorPil(**options).save_pretrained(tmp_path)
    processor = load_image_processor(str(tmp_path))
    assert isinstance(processor, Siglip2ImageProcessorPil)
    dataset = PixelDataset(make_rows(images), read_form(processor))
    batch = dataset.__getitems__(range(len(images)))
    assert batch["pixel_values"].dtype == torch.uint8
    ours = PixelNormalizer(processor).prepare(batch["pixel_values"])
    expected = processor(images, return_tensors="pt")
    assert set(ours) == set(expected)
    for name, value in expected.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name
    assert len({tuple(grid) for grid in ours["spatial_shapes"].tolist()}) > 3


def test_grids_beyond_a_byte_survive_packing():
    image = Image.new("RGB", (3000, 1), (200, 10, 30))
    packed = pack([image], PatchBudget(2, 700))
    patches = unpack_patches(packed)
    assert patches.spatial_shapes.tolist() == [[1, 700]]
    assert patches.mask.all()
    again = pack_patches(patches.values.float(), patches.spatial_shapes)
    assert torch.equal(again, packed.float())


def test_cached_patches_are_those_decoded_anew(images, tmp_path):
    rows = make_rows(images)
    arguments = DataArguments(cache_dir=str(tmp_path))
    form = PixelForm(PatchBudget(SIDE, PATCHES), Image.Resampling.BILINEAR)
    cached = open_pixels(rows, form, arguments)
    assert cached.cached.shape == (len(images), 1 + PATCHES, 3 * SIDE**2)
    batch = cached.__getitems__([5, 0])
    assert torch.equal(batch["pixel_values"], pack(images)[[5, 0]])
    larger = open_pixels(rows, form.scale(1.5), arguments)
    assert larger.cached.shape[1] == 1 + round(PATCHES * 1.5**2)


@pytest.mark.parametrize("pooling", ["map", "mean"])
def test_logits_depend_neither_on_batch_mates_nor_on_padding(pooling, checkpoint, images):
    model = load_classifier(str(checkpoint), NAMES, pooling=pooling).eval()
    normalizer = PixelNormalizer(load_image_processor(str(checkpoint)))
    with torch.no_grad():
        together = model(**normalizer.prepare(pack(images))).logits
        for number, image in enumerate(images):
            packed = pack([image])
            alone = model(**normalizer.prepare(packed)).logits
            torch.testing.assert_close(alone, together[number : number + 1], **CLOSE)
            # As of a larger budget, and with anything but zeros in the padding.
            inputs = normalizer.prepare(torch.cat([packed, packed.new_zeros(1, 9, 48)], dim=1))
            noise = torch.randn_like(inputs["pixel_values"])
            padding = inputs["pixel_attention_mask"][..., None] == 0
            inputs["pixel_values"] = torch.where(padding, noise, inputs["pixel_values"])
            torch.testing.assert_close(
                model(**inputs).logits, together[number : number + 1], **CLOSE
            )


def test_zero_shot_equals_the_two_tower_model(checkpoint, images):
    """With one template, class embeddings are the text tower's and logits the whole model's."""
    names = [name.lower() for name in NAMES]
    model = load_zero_shot_classifier(
        str(checkpoint), names, [[f"a photo of a {name}."] for name in names]
    )
    inputs = load_image_processor(str(checkpoint))(images, return_tensors="pt")
    whole = Siglip2Model.from_pretrained(checkpoint).eval()
    prompts = [f"a photo of a {name}." for name in names]
    ids = tokenize_prompts(load_tokenizer(str(checkpoint)), prompts, 16)
    with torch.no_grad():
        expected = whole(input_ids=ids, **inputs).logits_per_image
        torch.testing.assert_close(model(**inputs).logits, expected, **CLOSE)


def test_contrastive_training_folds_to_a_naflex_classifier(checkpoint, images):
    model = load_contrastive(
        str(checkpoint), NAMES, build_prompts(NAMES, ["a {}", "the {} flower"])
    )
    inputs = load_image_processor(str(checkpoint))(images, return_tensors="pt")
    labels = torch.arange(len(images)) % 3
    loss = model.train()(**inputs, labels=labels, templates=labels % 2).loss
    loss.backward()
    assert all(value.grad is not None for _, value in model.named_parameters())
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        torch.testing.assert_close(model.fold()(**inputs).logits, expected, **CLOSE)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0.0), ("bfloat16", 0.05)])
def test_the_engine_computes_what_the_model_does(dtype, tolerance, checkpoint, images):
    model = load_classifier(str(checkpoint), NAMES).eval()
    processor = load_image_processor(str(checkpoint))
    engine = InferenceEngine(model, processor, device=torch.device("cpu"), dtype=dtype)
    with torch.no_grad():
        expected = model(**processor(images, return_tensors="pt")).logits
    ours = engine.classify(pack(images))
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


# Augmentation


def augment(packed, budget, seed=0, step=3, **options):
    settings = {"crop_min_scale": 1.0, "horizontal_flip": 0.0, "color_jitter": 0.0} | options
    augmenter = PatchAugmenter(AugmentationArguments(**settings), budget, 3, seed)
    labels = torch.zeros(len(packed), dtype=torch.int64)
    return augmenter(packed, labels, np.arange(len(packed)), step)[0]


def put_together(patches, number):
    """Return one image (3, H, W) of a packed batch."""
    taken = unpack_patches(patches)
    rows, columns = taken.spatial_shapes[number].tolist()
    side = round((taken.values.shape[-1] / 3) ** 0.5)
    cut = taken.values[number, : rows * columns].reshape(rows, columns, side, side, 3)
    return cut.permute(4, 0, 2, 1, 3).reshape(3, rows * side, columns * side)


def test_a_flip_mirrors_each_image_within_its_own_grid(images):
    packed = pack(images)
    flipped = augment(packed, PatchBudget(SIDE, PATCHES), horizontal_flip=1.0)
    for number in range(len(images)):
        expected = put_together(packed.float(), number).flip(-1)
        torch.testing.assert_close(put_together(flipped, number), expected, atol=2e-3, rtol=0)
    padding = unpack_patches(packed).mask == 0
    assert not unpack_patches(flipped).values[padding].any()


def test_crop_and_jitter_equal_those_of_a_square_image(flowers_dir):
    """A square image of whole patches is varied as the augmenter of square images does."""
    photographs = [one.resize((16, 16)) for one in read_images(flowers_dir, 6)]
    budget = PatchBudget(SIDE, 16)
    packed = pack(photographs, budget)
    options = {"crop_min_scale": 0.3, "horizontal_flip": 0.5, "color_jitter": 0.4}
    ours = augment(packed, budget, **options)
    pixels = torch.stack([put_together(packed, number) for number in range(6)])
    square = BatchAugmenter(AugmentationArguments(**options), 16, 3, 0)
    expected, _ = square(pixels, torch.zeros(6, dtype=torch.int64), np.arange(6), 3)
    for number in range(6):
        torch.testing.assert_close(
            put_together(ours, number), expected[number], atol=5e-3, rtol=1e-4
        )


def test_jitter_ignores_the_padding(images):
    budget = PatchBudget(SIDE, PATCHES)
    packed = pack(images, budget)
    # More padding, the same images.
    wide = torch.cat([packed, packed.new_zeros(len(packed), 12, packed.shape[2])], dim=1)
    jittered = augment(packed, budget, color_jitter=0.5)
    padded = augment(wide, PatchBudget(SIDE, PATCHES + 12), color_jitter=0.5)
    assert (jittered - packed).abs().max() > 10
    torch.testing.assert_close(padded[:, : 1 + PATCHES], jittered, atol=1e-3, rtol=0)


def test_grids_shrink_to_what_fits():
    grids = torch.tensor([[18, 18], [1, 338], [338, 1], [13, 26], [1, 1], [7, 48]])
    shrunk = shrink_grids(grids, 338, 256)
    assert shrunk[0].tolist() == [16, 16]
    assert shrunk[1].tolist() == [1, 256]
    assert shrunk[2].tolist() == [256, 1]
    assert shrunk[4].tolist() == [1, 1]
    assert (shrunk.prod(dim=1) <= 256).all()
    assert shrink_grids(grids, 338, 338) is grids


# Commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The image folder, half of its images made wide or tall."""
    root = make_folder(tmp_path_factory.mktemp("flowers"))
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        with Image.open(path) as image:
            image.resize([(16, 16), (24, 8), (8, 30)][number % 3]).save(path)
    return root


@pytest.fixture(scope="module")
def run(checkpoint, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    options = small_options(
        checkpoint, folder, output, "--max_num_patches", "12", "--num_train_epochs", "6"
    )
    options += ["--train_resize_scale", "1.3", "--crop_min_scale", "0.7"]
    assert run_train(options) == 0
    return output


def test_a_run_learns_and_eval_finds_the_same(run, folder, tmp_path, capsys):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["splits"]["test"]["accuracy"] > 0.7
    options = ["--model", str(run), "--data_dir", str(folder), "--split", "test"]
    assert run_eval([*options, "--output_dir", str(tmp_path)]) == 0
    chosen = metrics["training"]
    assert (
        f"The best checkpoint is step {chosen['best_step']} of {chosen['steps']}, with "
        f"validation_accuracy {chosen['best_value']:.4f} during training" in capsys.readouterr().out
    )
    again = json.loads((tmp_path / "metrics_test.json").read_text())
    assert again["accuracy"] == metrics["splits"]["test"]["accuracy"]
    processor = load_image_processor(str(run / "model"))
    assert isinstance(processor, Siglip2ImageProcessorPil)
    assert processor.max_num_patches == 12


def test_predict_and_the_pipeline_agree(run, folder, capsys):
    paths = sorted((folder / "test").rglob("*.png"))
    classifier = SiglipImageClassifier.from_pretrained(run / "model", dtype="float32", batch_size=5)
    ours = classifier(paths, top_k=1)
    theirs = pipeline(
        "image-classification",
        model=load_saved_classifier(str(run / "model")),
        image_processor=load_image_processor(str(run / "model")),
    )([str(path) for path in paths], top_k=1)
    for one, other in zip(ours, theirs, strict=True):
        assert one[0]["label"] == other[0]["label"]
        assert one[0]["score"] == pytest.approx(other[0]["score"], abs=1e-5)
    assert run_predict(["--model", str(run), str(paths[0])]) == 0
    assert any(name in capsys.readouterr().out for name in CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--lora_r", "2"],
        ["--pooling", "mean", "--layer_decay", "0.7", "--objective", "sigmoid"],
        ["--trainable", "head", "--head_init", "probe"],
        ["--trainable", "head", "--head_init", "text"],
        ["--objective", "contrastive"],
    ],
)
def test_recipes_for_a_fixed_resolution_train_naflex_too(options, checkpoint, folder, tmp_path):
    given = small_options(checkpoint, folder, tmp_path / "out", *options)
    assert run_train([*given, "--num_train_epochs", "1"]) == 0
    model = load_saved_classifier(str(tmp_path / "out" / "model"))
    assert isinstance(model.vision_model, Siglip2VisionModel)


@pytest.mark.parametrize(
    "naflex, option, message",
    [
        (True, "--image_size 32", "--image_size 32 is for fixed-resolution.*use --max_num_patches"),
        (True, "--train_image_size 32", "--train_image_size 32 is for fixed-resolution"),
        (True, "--mixup_alpha 0.2", "--mixup_alpha and --cutmix_alpha need images of one shape"),
        (False, "--max_num_patches 72", "--max_num_patches 72 is for NaFlex"),
        (False, "--train_image_size 72", "72 is larger than the 64 pixels of evaluation"),
    ],
)
def test_an_option_that_cannot_apply_is_refused_first(
    naflex, option, message, checkpoint, nano_dir, folder, tmp_path, capsys
):
    model = checkpoint if naflex else nano_dir
    given = small_options(model, folder, tmp_path / "out", *option.split())
    assert run_train(given) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
