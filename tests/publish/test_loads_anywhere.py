"""The modeling file that is pushed beside the weights computes what ours does."""

import re
from pathlib import Path

import pytest
import torch
from transformers import Siglip2VisionConfig, SiglipForImageClassification, SiglipVisionConfig

from siglip_flowers.model import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model import modeling_siglip_classifier as remote
from siglip_flowers.model.classifier import to_native
from siglip_flowers.model.loading import load_saved_classifier
from siglip_flowers.publish.publish import MODELING_FILE
from tests.small_runs import TINY

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_the_modeling_file_needs_torch_and_transformers_only():
    source = Path(remote.__file__)
    assert source.name == MODELING_FILE
    imported = re.findall(r"^\s*(?:from|import) (\w+)", source.read_text(encoding="utf-8"), re.M)
    assert set(imported) == {"typing", "torch", "transformers"}


def draw_inputs(naflex: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if not naflex:
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    return {
        "pixel_values": torch.randn(3, 6, 3 * 8 * 8, generator=generator),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[2, 3], [2, 2], [3, 2]]),
    }


@pytest.mark.parametrize("naflex", [False, True], ids=["fixed", "naflex"])
@pytest.mark.parametrize("pooling", ["map", "mean"])
@pytest.mark.parametrize("head", ["linear", "normalized", "cosine"])
def test_the_modeling_file_computes_the_same_logits(naflex, pooling, head, tmp_path):
    torch.manual_seed(1)
    if naflex:
        vision = Siglip2VisionConfig(**TINY, num_patches=9, patch_size=8)
    else:
        vision = SiglipVisionConfig(**TINY, image_size=16, patch_size=8)
    config = SiglipClassifierConfig(
        vision_config=vision,
        pooling=pooling,
        head="cosine" if head == "cosine" else "linear",
        normalize_features=head == "normalized",
        activation="sigmoid" if head == "cosine" else "softmax",
        id2label=dict(enumerate("abc")),
        label2id={name: index for index, name in enumerate("abc")},
    )
    model = SiglipClassifier(config).eval()
    torch.nn.init.normal_(next(iter(model.classifier.parameters())))
    # As a run saves it.
    model.fold().save_pretrained(tmp_path)
    theirs, report = remote.SiglipClassifier.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    inputs = draw_inputs(naflex)
    with torch.no_grad():
        expected = model(**inputs).logits
        assert expected.std() > 0.01
        torch.testing.assert_close(theirs(**inputs).logits, expected, **CLOSE)
    assert theirs.config.problem_type == model.config.problem_type


def test_a_plain_export_names_no_path_and_knows_its_activation(tmp_path):
    vision = SiglipVisionConfig(**TINY, image_size=16, patch_size=8)
    vision._name_or_path = str(tmp_path / "checkpoint")
    config = SiglipClassifierConfig(
        vision_config=vision, pooling="mean", activation="sigmoid", id2label={0: "a", 1: "b"}
    )
    native = to_native(SiglipClassifier(config))
    native.save_pretrained(tmp_path / "native")
    assert str(tmp_path) not in (tmp_path / "native" / "config.json").read_text()
    assert SiglipForImageClassification.from_pretrained(tmp_path / "native").config.num_labels == 2
    again = load_saved_classifier(str(tmp_path / "native"))
    assert again.config.activation == "sigmoid"
    assert again.config.pooling == "mean"
