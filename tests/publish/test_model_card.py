"""The model card: complete, true, valid for the Hub, and without anything of the machine."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from huggingface_hub import EvalResult, ModelCard
from transformers import SiglipVisionConfig

from siglip_flowers.base.errors import InputError
from siglip_flowers.base.hub_names import is_hub_id
from siglip_flowers.commands import train as train_command
from siglip_flowers.metrics.modules import compute_metrics
from siglip_flowers.publish.card import CardFacts, build_card, escape
from siglip_flowers.publish.finished import (
    FinishedRun,
    Predictions,
    hide_paths,
    list_private_paths,
)
from siglip_flowers.publish.options import PublishArguments
from siglip_flowers.publish.results import choose_settings, compute_intervals

NAMES = ["aster", "clover | *x* <b>_y_", "rose\n# heading"]
METRICS = (
    *("loss", "nll", "accuracy", "top5_accuracy", "precision_macro", "recall_macro", "f1_macro"),
    *("precision_weighted", "recall_weighted", "f1_weighted"),
)


@pytest.fixture
def run(tmp_path):
    """A run's record with figures that follow from its predictions."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    logits = generator.normal(size=(60, 3)) + 2 * np.eye(3)[labels]
    figures = compute_metrics(logits, labels)
    rows = [
        {"label": n, "name": name, "support": 20, "precision": 0.5, "recall": 0.5, "f1": 0.1 * n}
        for n, name in enumerate(NAMES)
    ]
    split = {"n": 60, **figures, "per_class": rows}
    metrics = {
        "data": {
            "source": "oxford",
            "split_protocol": "swapped",
            "description": "Oxford Flowers102, swapped splits, 6149/1020/60 images",
            "shots": 4,
            "shared_images": [["train", "a", "test", "b"], ["train", "a", "validation", "c"]],
            "skipped_images": {"train": 2, "validation": 0, "test": 0},
        },
        "model": {
            "model_id": "google/siglip-base-patch16-224",
            "local": False,
            "from_scratch": False,
            "pooling": "map",
            "activation": "softmax",
            "parameters": 1234567,
        },
        "training": {
            **{"seed": 3, "epochs": 2.0, "steps": 40, "best_step": 20, "seconds": 61.2},
            **{"processes": 1, "precision": "bf16"},
        },
        "environment": {
            **{"python": "3.11.7", "packages": {"torch": "2.11.0"}, "device": "NVIDIA H100"},
            "commit": "0123abc",
        },
        "splits": {"test": split, "validation": copy.deepcopy(split)},
    }
    predicted = logits.argmax(axis=1)
    predictions = Predictions(
        ids=[str(n) for n in range(60)],
        labels=labels,
        label_names=[NAMES[n] for n in labels],
        predicted=predicted,
        hits=np.ones(60, dtype=bool),
        top=[],
    )
    settings = {
        "model_name_or_path": "google/siglip-base-patch16-224",
        "data_dir": "/secret/images",
        "learning_rate": 3e-5,
        "mixup_alpha": 0.2,
        "seed": 3,
    }
    return FinishedRun(tmp_path, metrics, settings, predictions)


def make_card(run, **changes):
    config = SimpleNamespace(vision_config=SiglipVisionConfig(), id2label=dict(enumerate(NAMES)))
    facts = {
        **{"model_id": "garden/flowers", "license": "apache-2.0", "language": "en"},
        **{"native": False, "plots": ["loss_plot.png"], "weights": {"model.safetensors": "ab12"}},
        "pipeline_differences": {"transparency": 0.25},
    }
    return build_card(run, config, CardFacts(**{**facts, **changes}))


def test_the_index_has_every_test_metric_and_reads_back(run, tmp_path):
    make_card(run).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    test = run.metrics["splits"]["test"]
    assert len(data.eval_results) == len(METRICS)
    assert all(isinstance(result, EvalResult) for result in data.eval_results)
    assert sorted(result.metric_value for result in data.eval_results) == sorted(
        test[name] for name in METRICS
    )
    assert {result.dataset_type for result in data.eval_results} == {"oxford_flowers102"}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert len({result.metric_name for result in data.eval_results}) == len(METRICS)
    assert data.license == "apache-2.0"
    assert data.language == "en"
    assert data.pipeline_tag == "image-classification"
    assert data.library_name == "transformers"
    assert data.base_model == "google/siglip-base-patch16-224"
    assert data.datasets == ["oxford_flowers102"]
    assert data.model_name == "flowers"
    assert {"siglip", "image-classification"} <= set(data.tags)


def test_the_text_has_every_section_and_none_is_blank(run):
    text = make_card(run).text
    sections = text.split("\n## ")
    titles = [section.split("\n")[0] for section in sections[1:]]
    assert titles == [
        *("How to use", "Results", "Plots", "Training", "Data", "Intended use and limits"),
        *("License", "Environment"),
    ]
    assert all(len(section.split("\n", 1)[1].strip()) > 20 for section in sections[1:])
    for word in ("None", "null", "nan", "TODO", "More information needed", "/secret"):
        assert word not in text
    for fact in ("trust_remote_code=True", "ab12", "NVIDIA H100", "0123abc", "mixup", "seed 3"):
        assert fact in text
    for fact in ("2 pairs, 1 of them with", "4 images per class", "left out: 2 images"):
        assert fact in text
    assert "3 classes of Oxford Flowers102 apart" in text


def test_what_is_not_known_is_not_stated(run):
    card = make_card(run, license=None, language=None)
    assert card.data.license is card.data.language is None
    assert "License of the model: not stated." in card.text
    assert "Language of the class names: not stated." in card.text


def test_files_that_the_pipeline_opens_otherwise_are_named_with_a_remedy(run):
    use = make_card(run).text.split("\n## ")[1]
    assert "| transparency | 0.25 |" in use
    assert 'Image.open("image.jpg")' in use
    assert "transparency" not in make_card(run, pipeline_differences={}).text


def test_what_is_no_plain_class_is_not_loaded_as_one(run):
    use = make_card(run).text.split("\n## ")[1]
    assert "Do not load the model through `SiglipForImageClassification.from_pretrained`" in use
    assert "Do not load" not in make_card(run, native=True).text


def test_a_plain_model_needs_no_trust(run):
    assert "trust_remote_code" not in make_card(run, native=True).content


def test_class_names_cannot_change_the_page(run):
    text = make_card(run).text
    assert "clover \\| \\*x\\* &lt;b&gt;\\_y\\_ (0.10)" in text
    assert "\n# heading" not in text
    assert escape("[a](b) `c` $d$ #e") == "\\[a\\](b) \\`c\\` \\$d\\$ \\#e"


@pytest.mark.parametrize("change", [{"local": True}, {"from_scratch": True}])
def test_only_a_parent_on_the_hub_is_named(run, change):
    run.metrics["model"].update(change)
    if "local" in change:
        run.settings["model_name_or_path"] = "results/mine"
    card = make_card(run)
    assert card.data.base_model is None
    assert "results/mine" not in card.content
    assert ("local checkpoint" in card.text) is ("local" in change)
    assert ("random weights" in card.text) is ("from_scratch" in change)


def test_the_intervals_of_accuracies_are_wilsons_and_all_hold_their_figure(run):
    predictions = run.predictions
    intervals = compute_intervals(predictions, 3)
    right = int((predictions.labels == predictions.predicted).sum())
    expected = scipy.stats.binomtest(right, 60).proportion_ci(method="wilson")
    assert intervals["accuracy"] == pytest.approx((expected.low, expected.high))
    test = run.metrics["splits"]["test"]
    for name, (low, high) in intervals.items():
        assert low <= test[name] <= high, name
    low, high = (f"{100 * end:.2f}%" for end in intervals["f1_macro"])
    assert f"| F1 (macro) | {test['f1_macro']:.2%} | {low} to {high} |" in make_card(run).text


def test_settings_shown_are_the_essential_and_the_changed_ones():
    recipe = {"learning_rate": 2e-5, "crop_min_scale": 0.5, "ema": 0.99, "shots": 4}
    machine = {
        **{"aim_repo": "aim://10.0.0.7:53800", "wandb_log_model": True, "use_cpu": True},
        **{"cache_dir": "/x", "data_dir": "/x", "output_dir": "/x", "prompt_templates": "/x"},
        **{"disable_tqdm": True, "logging_steps": 3, "attn_implementation": "eager"},
    }
    shown = choose_settings({**recipe, **machine})
    assert shown == {"learning_rate": 2e-5, "ema": 0.99, "shots": 4}


def test_paths_of_the_machine_are_found_in_the_settings(tmp_path):
    settings = {"data_dir": str(tmp_path), "dataset_name": "garden/photos", "seed": 3}
    private = list_private_paths(settings, {"garden/photos", None})
    assert str(tmp_path) in private
    assert "garden/photos" not in private


def test_paths_are_cut_out_of_any_text():
    value = {"title": "model of /home/me/data, fine", "deep": [["/home/me/data/x", 1, None]]}
    assert json.dumps(hide_paths(value, ["/home/me/data", "/home/me"])) == json.dumps(
        {"title": "model of data, fine", "deep": [["data/x", 1, None]]}
    )


@pytest.mark.parametrize(
    ("name", "good"),
    [
        *(("garden/flowers", True), ("a/b", True), ("Org-1/x_y.z", True), ("flowers", False)),
        *(
            ("a/b/c", False),
            ("../x", False),
            ("a/-b", False),
            ("a/b.git", False),
            ("a/b..c", False),
        ),
        *(("a b/c", False), ("a/" + "x" * 97, False), ("a/b\n", False)),
    ],
)
def test_names_are_checked_as_the_hub_does(name, good):
    assert is_hub_id(name) is good


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hub_token", "hf_secret"], "Unknown option --hub_token"),
        (["--push_to_hub"], "--hub_model_id ORG/NAME"),
        (["--hub_model_id", "me/flowers"], "without --push_to_hub"),
        (["--push_to_hub", "--hub_model_id", "flowers"], "use ORG/NAME"),
        (["--hub_strategy", "checkpoint"], "Unknown option --hub_strategy"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_the_training(options, message, capsys):
    assert train_command.main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "hf_secret" not in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "No run is given"),
        ({"run": "r"}, "--output_dir DIR"),
        ({"run": "r", "hub_model_id": "flowers"}, "use ORG/NAME"),
        ({"run": "r", "hub_model_id": "a/b", "language": "English"}, "ISO 639"),
        ({"run": "r", "hub_model_id": "a/b", "license": "Apache 2"}, "apache-2.0"),
        ({"run": "r", "hub_model_id": "a/b", "check_samples": 0}, "greater than 0"),
        ({"run": "r", "output_dir": "."}, "name a new directory"),
    ],
)
def test_publishing_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        PublishArguments(**options)
