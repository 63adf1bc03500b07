"""What was pushed works without this package, and the modelling file computes what ours does."""

import ast
import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from transformers import (
    Siglip2VisionConfig,
    SiglipForImageClassification,
    SiglipVisionConfig,
)

from siglip_flowers.model import SiglipClassifier, SiglipClassifierConfig
from siglip_flowers.model.loading import load_saved_classifier
from siglip_flowers.model.native import to_native
from siglip_flowers.publishing.publish import MODELING_FILE
from siglip_flowers.publishing.remote import modeling_siglip_classifier as remote
from tests.hub_server import TOKEN
from tests.small_hub import hub_environment, publish_small_runs

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
STRANGER = """
import importlib.util, json, sys
from transformers import pipeline, SiglipForImageClassification
pictures = json.load(sys.stdin)
def classify(name, **options):
    classifier = pipeline("image-classification", model=name, **options)
    rows = [{row["label"]: row["score"] for row in answer} for answer in classifier(pictures)]
    return {"class": type(classifier.model).__name__, "rows": rows}
def refusal(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
answers = json.dumps(
    {
        "has_package": importlib.util.find_spec("siglip_flowers") is not None,
        "mean": classify("garden/mean"),
        "untrusted": refusal(lambda: classify("garden/map")),
        "map": classify("garden/map", trust_remote_code=True),
    }
)
# Asked whether to trust the code, the library has printed its question on this line.
print()
print(answers)
"""


def build_bare_environment(directory: Path) -> Path:
    """Make a virtual environment with all of this one's packages but ours; return its Python."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = directory / "bin" / "python"
    (target,) = directory.glob("lib/python*/site-packages")
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            # Nor the file that makes an editable installation of ours importable.
            ours = entry.name.startswith(("siglip_flowers", "__editable__"))
            if not ours and entry.suffix != ".pth" and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    return python


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What a stranger's machine makes of both models on the Hub, and of the test pictures."""
    published = publish_small_runs()
    place = tmp_path_factory.mktemp("stranger")
    environment = hub_environment(published.hub.endpoint, place / "home", token=None)
    del environment["PYTHONPATH"]
    pictures = sorted((published.pictures / "test").rglob("*.png"))
    done = subprocess.run(
        [build_bare_environment(place / "venv"), "-I", "-c", STRANGER],
        input=json.dumps([str(path) for path in pictures]),
        env=environment,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in environment.values()
    return {**json.loads(done.stdout.splitlines()[-1]), "pictures": pictures}


@pytest.mark.parametrize(
    ("name", "kind"), [("mean", "SiglipForImageClassification"), ("map", "SiglipClassifier")]
)
def test_the_pipeline_gives_the_recorded_labels_without_this_package(answers, name, kind):
    assert answers["has_package"] is False
    assert answers[name]["class"] == kind
    path = publish_small_runs().run(name) / "predictions_test.parquet"
    table = pyarrow.parquet.read_table(path).to_pylist()
    recorded = {row["image_id"]: row for row in table}
    assert len(recorded) == len(answers["pictures"]) == 12
    for picture, found in zip(answers["pictures"], answers[name]["rows"], strict=True):
        row = recorded[f"{picture.parent.name}/{picture.stem}"]
        expected = dict(zip(row["top_names"], row["top_probabilities"], strict=True))
        assert max(found, key=found.get) == row["top_names"][0]
        assert found == pytest.approx(expected, abs=1e-5)


def test_without_trust_the_call_fails_and_says_so(answers):
    assert "trust_remote_code=True" in answers["untrusted"]
    assert "custom code" in answers["untrusted"]


def test_this_package_reads_both_back(tmp_path):
    pixels = torch.randn(2, 3, 16, 16)
    for name in ("mean", "map"):
        run = publish_small_runs().run(name)
        files = publish_small_runs().hub.repositories[f"garden/{name}"].files
        directory = tmp_path / name
        directory.mkdir()
        for path, data in files.items():
            (directory / path).write_bytes(data)
        with torch.no_grad():
            ours = load_saved_classifier(str(directory))
            expected = load_saved_classifier(str(run / "model"))(pixels).logits
            torch.testing.assert_close(ours(pixels).logits, expected, **CLOSE)
        assert ours.config.activation == "softmax"


def test_the_modelling_file_needs_torch_and_transformers_only():
    source = Path(remote.__file__)
    assert source.name == MODELING_FILE
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"torch", "transformers"}


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
def test_the_modelling_file_computes_the_same_logits(naflex, pooling, head, tmp_path):
    torch.manual_seed(1)
    if naflex:
        vision = Siglip2VisionConfig(**SIZES, num_attention_heads=2, num_patches=9, patch_size=8)
    else:
        vision = SiglipVisionConfig(**SIZES, num_attention_heads=2, image_size=16, patch_size=8)
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


def test_an_unfolded_head_is_refused_by_the_modelling_file():
    with pytest.raises(ValueError, match="whose head is linear"):
        remote.SiglipClassifier(remote.SiglipClassifierConfig(head="cosine"))


def test_a_plain_export_names_no_path_and_knows_its_activation(tmp_path):
    vision = SiglipVisionConfig(**SIZES, num_attention_heads=2, image_size=16, patch_size=8)
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
