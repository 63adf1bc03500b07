"""Heads fitted on features: the same as trained step by step, each as if it were alone."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import sklearn.linear_model
import sklearn.neighbors
import torch
from safetensors.torch import load_file
from transformers import set_seed

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.run_dir import ADAPTER_DIR, PROBE_GRID_FILE, RUN_FILES
from siglip_flowers.commands.train import main as train
from siglip_flowers.config import (
    AugmentationArguments,
    DataArguments,
    ModelArguments,
    ProbeArguments,
    SiglipTrainingArguments,
    check_probe,
)
from siglip_flowers.config.parsing import parse_arguments
from siglip_flowers.metrics.modules import compute_metrics
from siglip_flowers.metrics.neighbors import vote_neighbors
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.model.losses import cross_entropy_loss, sigmoid_loss
from siglip_flowers.model.probe_solvers import (
    fit_logistic_heads,
    fit_ridge_heads,
    scale_to_probabilities,
)
from siglip_flowers.probe.figures import judge_logits, summarize_head
from siglip_flowers.probe.fit import encoder_arguments, fit_probe, fits_on_features
from siglip_flowers.probe.head_grid import (
    HeadGrid,
    HeadGridAdamW,
    cross_entropy_of_heads,
    sigmoid_loss_of_heads,
)
from siglip_flowers.training.build import (
    RunArguments,
    build_model,
    build_trainer,
    check_arguments,
)
from tests.small_flowers import build_flowers
from tests.small_runs import make_checkpoint, make_folder, small_options
from tests.test_distributed import launch, write_folder


@pytest.fixture(scope="module")
def data(flowers_dir):
    """32 training, 20 validation and 12 test photographs of 4 classes."""
    return build_flowers(flowers_dir, train=8)


@pytest.fixture
def arrange(nano_dir, tmp_path):
    """Return the arguments of a small run."""

    def arrange(name="run", probe=None, model=None, augmentation=None, **options):
        options = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 7,
            "train_eval_samples": 9,
            "head_learning_rate": 3e-3,
            "logging_steps": 2,
            "bf16": False,
            "use_cpu": True,
            "disable_tqdm": True,
            **options,
        }
        return RunArguments(
            DataArguments(),
            AugmentationArguments(**(augmentation or {"augment": False})),
            ModelArguments(model_name_or_path=str(nano_dir), trainable="head", **(model or {})),
            SiglipTrainingArguments(output_dir=str(tmp_path / name), **options),
            ProbeArguments(**(probe or {})),
        )

    return arrange


@pytest.fixture
def fit(arrange, data, nano_dir):
    """Fit on features as a run does."""

    def fit(*args, checkpoint=None, **options):
        arguments = arrange(*args, **options)
        assert fits_on_features(arguments)
        check_arguments(arguments)
        set_seed(arguments.training.seed)
        processor = load_image_processor(str(nano_dir))
        model = build_model(encoder_arguments(arguments), data, processor)
        return fit_probe(arguments, data, model, processor, checkpoint)

    return fit


@pytest.fixture
def step(arrange, data, nano_dir):
    """Train the head step by step, the encoder running in every one."""

    def step(*args, **options):
        arguments = arrange(*args, probe={"feature_cache": False}, **options)
        assert not fits_on_features(arguments)
        set_seed(arguments.training.seed)
        processor = load_image_processor(str(nano_dir))
        trainer = build_trainer(arguments, data, build_model(arguments, data, processor), processor)
        trainer.train()
        return trainer

    return step


def list_logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_same_row(found, expected, rel=1e-4):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == (pytest.approx(value, rel=rel) if isinstance(value, float) else value)


RECIPES = {
    "plain": {},
    "smoothed": {
        "label_smoothing_factor": 0.1,
        "class_weights": "balanced",
        "model": {"pooling": "mean"},
        "weight_decay": 3.0,
        "gradient_accumulation_steps": 2,
    },
    "sigmoid": {"objective": "sigmoid", "max_grad_norm": 0.0},
    "text": {"model": {"head_init": "text"}, "head_learning_rate": 1e-2, "logging_steps": 1},
    "probe": {
        "model": {"head_init": "probe"},
        "metric_for_best_model": "validation_loss",
        "greater_is_better": False,
    },
    "last": {"load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_grid_of_one_is_the_run_step_by_step(fit, step, recipe):
    ours, theirs = fit("ours", **RECIPES[recipe]), step("theirs", **RECIPES[recipe])
    expected = theirs.accelerator.unwrap_model(theirs.model).classifier.state_dict()
    found = ours.model.classifier.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)
    keys = ["loss", "accuracy", "grad_norm", "learning_rate"]
    if recipe != "last":
        keys += [
            f"eval_{split}_{name}"
            for split in ("train", "validation")
            for name in ("loss", "nll", "accuracy", "top5_accuracy", "f1_macro")
        ]
        assert ours.trainer.state.best_global_step == theirs.state.best_global_step
    for key in keys:
        values = list_logged(theirs, key)
        np.testing.assert_allclose(
            list_logged(ours.trainer, key), values, rtol=2e-3, atol=1e-6, err_msg=key
        )
        assert len(values) >= 2
    assert np.ptp(list_logged(theirs, "loss")) > 1e-3
    assert ours.trainer.state.global_step == theirs.state.global_step


def test_every_head_of_a_grid_is_as_if_trained_alone(fit):
    rates, decays, poolings = [1e-3, 3e-2], [0.0, 2.0], ["mean", "map"]
    options = {"max_grad_norm": 0.5, "num_train_epochs": 4}
    grid = fit(
        "grid",
        probe={
            "probe_learning_rates": rates,
            "probe_weight_decays": decays,
            "probe_poolings": poolings,
        },
        **options,
    )
    assert len(grid.trainer.settings) == 8
    norms = list_logged(grid.trainer, "grad_norm")
    assert max(norms) > 0.5  # so that clipping matters
    alone = []
    for number, setting in enumerate(grid.trainer.settings):
        one = fit(
            f"one{number}",
            model={"pooling": setting.pooling},
            head_learning_rate=setting.learning_rate,
            weight_decay=setting.weight_decay,
            **options,
        )
        for name, value in one.trainer.grid.get_kept(0).items():
            found = grid.trainer.grid.get_kept(number)[name]
            torch.testing.assert_close(found, value, atol=2e-5, rtol=1e-4)
        row = one.facts["probe"]["winner"]
        assert_same_row(grid.facts["probe"]["settings"][number], row)
        alone.append(one)
    # The winner, its curve and its model are those of the best single run.
    scores = [
        (
            one.facts["probe"]["winner"]["validation_accuracy"],
            -one.facts["probe"]["winner"]["validation_loss"],
        )
        for one in alone
    ]
    best = alone[int(max(range(8), key=lambda number: scores[number]))]
    assert grid.model.config.pooling == best.model.config.pooling
    torch.testing.assert_close(
        grid.model.classifier.weight, best.model.classifier.weight, atol=2e-5, rtol=1e-4
    )
    for key in ("loss", "grad_norm", "learning_rate", "eval_validation_loss", "eval_train_nll"):
        values = list_logged(best.trainer, key)
        np.testing.assert_allclose(list_logged(grid.trainer, key), values, rtol=1e-3, err_msg=key)


def test_a_resumed_fit_ends_as_an_uninterrupted_one(fit, tmp_path):
    options = {
        "probe": {"probe_learning_rates": [1e-3, 1e-2], "augmented_views": 2},
        "augmentation": {"train_resize_scale": 1.0},
        "num_train_epochs": 3,
        "save_total_limit": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,  # in the middle of an epoch of 4 steps
    }
    whole = fit("whole", **options)
    checkpoint = tmp_path / "resumed" / "checkpoints" / "checkpoint-6"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-6", checkpoint)
    resumed = fit("resumed", checkpoint=str(checkpoint), **options)
    assert resumed.trainer.state.global_step == whole.trainer.state.global_step == 12
    ours, theirs = resumed.trainer.grid.state_dict(), whole.trainer.grid.state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, equal_nan=True)
    assert resumed.facts["probe"]["settings"] == whole.facts["probe"]["settings"]
    assert resumed.trainer.records == whole.trainer.records
    assert list_logged(resumed.trainer, "loss") == list_logged(whole.trainer, "loss")


def test_augmented_views_are_trained_on_and_plain_images_evaluated(fit):
    options = {"augmentation": {"train_resize_scale": 1.0}, "num_train_epochs": 4}
    varied = fit("varied", probe={"augmented_views": 3}, **options)
    dataset = varied.trainer.train_dataset
    assert len(dataset.views) == varied.facts["probe"]["augmented_views"] == 3
    assert dataset.epoch == 3
    plain = fit("plain", num_train_epochs=4)
    for name in ("train", "validation"):
        np.testing.assert_array_equal(
            varied.trainer.eval_dataset[name].views[0], plain.trainer.eval_dataset[name].views[0]
        )
    assert list_logged(varied.trainer, "loss") != list_logged(plain.trainer, "loss")
    short = fit("short", probe={"augmented_views": 3}, **{**options, "num_train_epochs": 1.5})
    assert short.facts["probe"]["augmented_views"] == 2
    assert short.facts["probe"]["encoded_images"] == 0


def test_a_setting_that_diverges_is_not_chosen_and_all_that_do_are_an_error(fit):
    probe = {"probe_learning_rates": [1e-3, 1e38]}
    result = fit("some", probe=probe)
    rows = result.facts["probe"]["settings"]
    assert result.facts["probe"]["winner"]["learning_rate"] == 1e-3
    assert rows[1]["validation_loss"] is None
    with pytest.raises(RunError, match="every setting are not finite.*lower the learning rate"):
        fit("all", head_learning_rate=1e38)


@pytest.mark.parametrize("rates, warned", [([1e-5, 1e-2], True), ([1e-2], False)])
def test_a_winner_on_the_edge_of_the_grid_is_warned_of(fit, caplog, rates, warned):
    fit(probe={"probe_learning_rates": rates})
    assert ("lies on the edge of the grid" in caplog.text) == warned


@pytest.mark.parametrize("solver", ["ridge", "lbfgs"])
def test_solvers_choose_strength_and_pooling_on_validation(fit, data, solver):
    result = fit(probe={"probe_solver": solver, "probe_poolings": ["map", "mean"]})
    rows = result.facts["probe"]["settings"]
    winner = result.facts["probe"]["winner"]
    best = max(rows, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert winner == best
    assert {row["pooling"] for row in rows} == {"map", "mean"}
    assert len({row["validation_loss"] for row in rows}) > 4
    features = result.trainer.eval_dataset["validation"]
    pooled = torch.tensor(features.views[0][:, ["map", "mean"].index(winner["pooling"])])
    with torch.no_grad():
        logits = result.model.classify_features(pooled)
    metrics = compute_metrics(logits.numpy(), features.labels.numpy())
    assert metrics["accuracy"] == pytest.approx(winner["validation_accuracy"])
    assert metrics["loss"] == pytest.approx(winner["validation_loss"], rel=1e-3)
    assert metrics["accuracy"] > 0.4


@pytest.fixture
def features():
    """Three views of 90 rows of 12 features in 5 unequal classes, and 40 rows to judge by."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(5, 12)) * generator.uniform(0.1, 3.0, 12)
    labels = generator.choice(5, 130, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    rows = centers[labels] + generator.normal(size=(3, 130, 12)) + 2.0
    return (
        rows.astype(np.float32)[:, :90],
        labels[:90],
        rows[0, 90:].astype(np.float32),
        labels[90:],
    )


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("views", [1, 3])
def test_ridge_is_scikit_learns(features, class_weight, views):
    rows, labels, queries, _ = features
    strengths = [1e-4, 0.1, 10.0]
    heads, alphas = fit_ridge_heads(list(rows[:views]), labels, 5, strengths, class_weight)
    for (weight, bias), alpha in zip(heads, alphas, strict=True):
        reference = sklearn.linear_model.RidgeClassifier(alpha=alpha, class_weight=class_weight)
        reference.fit(np.concatenate(rows[:views]).astype(float), np.tile(labels, views))
        scores = queries @ weight.T + bias
        # Targets -1 and 1 in the place of 0 and 1.
        np.testing.assert_allclose(2 * scores - 1, reference.decision_function(queries), atol=1e-4)
    assert len({tuple(np.argmax(queries @ w.T + b, axis=1)) for w, b in heads}) > 1


def test_logistic_regression_of_standardised_features_is_folded_in(features):
    rows, labels, queries, _ = features
    (head,) = fit_logistic_heads(rows[0], labels, 5, [0.1])
    scaler = sklearn.preprocessing.StandardScaler().fit(rows[0])
    reference = sklearn.linear_model.LogisticRegression(C=0.1).fit(
        scaler.transform(rows[0]), labels
    )
    scores = queries @ head[0].T + head[1]
    expected = reference.decision_function(scaler.transform(queries))
    np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_scaling_keeps_the_classes_and_fits_the_probabilities(features):
    rows, labels, queries, held_out = features
    heads, _ = fit_ridge_heads([rows[0]], labels, 5, [0.01])
    weight, bias = scale_to_probabilities(heads[0], queries, held_out)
    before, after = queries @ heads[0][0].T + heads[0][1], queries @ weight.T + bias
    assert (before.argmax(1) == after.argmax(1)).all()
    losses = [compute_metrics(after * factor, held_out)["nll"] for factor in (0.9, 1.0, 1.1)]
    assert min(losses) == losses[1] < compute_metrics(before, held_out)["nll"]


def test_neighbors_vote_as_scikit_learns_do(features):
    rows, labels, queries, _ = features
    reference = sklearn.neighbors.KNeighborsClassifier(
        n_neighbors=20, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(rows[0], labels)
    votes = vote_neighbors(rows[0], labels, queries, 5)
    np.testing.assert_allclose(votes, reference.predict_proba(queries), atol=1e-4)
    few = vote_neighbors(rows[0, :3], labels[:3], queries, 5)
    np.testing.assert_allclose(few.sum(axis=1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("cosine", [False, True])
def test_gradients_are_clipped_head_by_head(cosine):
    torch.manual_seed(0)
    if cosine:
        start = {
            "class_embeddings": torch.randn(4, 6),
            "logit_scale": torch.tensor(2.0),
            "logit_bias": torch.tensor(-3.0),
        }
    else:
        start = {"weight": torch.randn(4, 6), "bias": torch.randn(4)}
    grid = HeadGrid({"map": start, "mean": start}, {"map": 2, "mean": 3})
    references = []
    for parameter in grid.parameters():
        size = torch.tensor([1e-3, 3.0, 50.0])[: len(parameter)]
        parameter.grad = torch.randn_like(parameter) * size.view(-1, *[1] * (parameter.ndim - 1))
    parts = list(grid.iterate_parts())
    for number in range(5):
        pieces = [
            torch.nn.Parameter(parameter[number - heads.start].detach().clone())
            for heads, _, parameter, _ in parts
            if heads.start <= number < heads.stop
        ]
        grads = [
            parameter.grad[number - heads.start].clone()
            for heads, _, parameter, _ in parts
            if heads.start <= number < heads.stop
        ]
        for piece, gradient in zip(pieces, grads, strict=True):
            piece.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(pieces, 1.0)
        references.append((norm, [piece.grad for piece in pieces]))
    norms = grid.clip_gradients(1.0)
    torch.testing.assert_close(norms, torch.stack([norm for norm, _ in references]))
    assert (norms < 1).any()
    assert (norms > 1).any()
    for number, (_, expected) in enumerate(references):
        found = [
            parameter.grad[number - heads.start]
            for heads, _, parameter, _ in parts
            if heads.start <= number < heads.stop
        ]
        torch.testing.assert_close(found, expected)


def test_every_slice_steps_as_adamw_does_alone():
    torch.manual_seed(0)
    rates, decays = [1e-3, 0.1, 2e-2], [0.0, 0.3, 5.0]
    start = torch.randn(3, 4, 5)
    stacked = torch.nn.Parameter(start.clone())
    group = {"params": [stacked], "lr_factors": [r / 0.1 for r in rates], "weight_decays": decays}
    ours = HeadGridAdamW([group], 0.1, (0.8, 0.99), 1e-6)
    single = [torch.nn.Parameter(start[number].clone()) for number in range(3)]
    theirs = [
        torch.optim.AdamW([one], lr=rate, weight_decay=decay, betas=(0.8, 0.99), eps=1e-6)
        for one, rate, decay in zip(single, rates, decays, strict=True)
    ]
    schedules = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, 20) for optimizer in (ours, *theirs)
    ]
    for turn in range(20):
        if turn == 10:  # a checkpoint in between
            state = ours.state_dict()
            ours = HeadGridAdamW([dict(group)], 0.1, (0.8, 0.99), 1e-6)
            ours.load_state_dict(state)
            schedules[0].optimizer = ours
        gradient = torch.randn(3, 4, 5)
        stacked.grad = gradient.clone()
        for one, piece in zip(single, gradient, strict=True):
            one.grad = piece.clone()
        for optimizer in (ours, *theirs):
            optimizer.step()
        for schedule in schedules:
            schedule.step()
    torch.testing.assert_close(stacked, torch.stack(list(single)), atol=1e-6, rtol=1e-5)


def test_losses_of_heads_are_the_losses_of_each():
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(9, 4, 5), torch.randint(5, (9,))
    weights = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.5])
    found = cross_entropy_of_heads(logits, labels, 0.2, weights)
    expected = [cross_entropy_loss(logits[:, k], labels, 0.2, weights) for k in range(4)]
    torch.testing.assert_close(found, torch.stack(expected))
    found = sigmoid_loss_of_heads(logits, labels)
    torch.testing.assert_close(
        found, torch.stack([sigmoid_loss(logits[:, k], labels) for k in range(4)])
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_figures_of_heads_are_those_of_any_evaluation(activation):
    torch.manual_seed(0)
    logits, labels = (2 * torch.randn(30, 3, 7)).round(), torch.randint(7, (30,))  # many ties
    judged = judge_logits(logits, labels, activation).numpy()
    for number in range(3):
        found = summarize_head(judged[:, number], labels.numpy(), 7)
        expected = compute_metrics(logits[:, number].numpy(), labels.numpy(), activation)
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_command_leaves_a_whole_run_and_encodes_nothing_again(tmp_path, capsys):
    checkpoint, folder = make_checkpoint(tmp_path / "tower"), make_folder(tmp_path / "flowers")
    options = [
        *small_options(checkpoint, folder, tmp_path / "run", "--trainable", "head"),
        *("--augment", "false", "--probe_learning_rates", "1e-3", "3e-2", "1e-1"),
        *("--probe_poolings", "mean", "map", "--cache_dir", str(tmp_path / "cache")),
    ]
    assert train(options) == 0
    shown = capsys.readouterr()
    assert "encoded 48 images once" in shown.out
    kept = re.findall(r"^Keeping \d+\.\d MB of (\w+) in (.+)$", shown.err, flags=re.MULTILINE)
    assert {("pixels", str(tmp_path / "cache")), ("features", str(tmp_path / "cache"))} == set(kept)
    assert set(os.listdir(tmp_path / "run")) == {*RUN_FILES, PROBE_GRID_FILE} - {ADAPTER_DIR}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    probe = metrics["probe"]
    with (tmp_path / "run" / PROBE_GRID_FILE).open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == 2 * [1e-3, 3e-2, 1e-1]
    for row, fact in zip(rows, probe["settings"], strict=True):
        assert float(row["validation_loss"]) == fact["validation_loss"]
        assert float(row["best_epoch"]) == fact["best_epoch"]
    winner, validation = probe["winner"], metrics["splits"]["validation"]
    assert metrics["model"]["pooling"] == winner["pooling"]
    assert validation["accuracy"] == pytest.approx(winner["validation_accuracy"])
    assert validation["loss"] == pytest.approx(winner["validation_loss"], rel=1e-3)
    assert metrics["training"]["best_step"] == winner["best_step"]
    assert 0 <= metrics["knn"]["test_accuracy"] <= 1
    again = [*options, "--overwrite_output_dir"]
    assert train(again) == 0
    shown = capsys.readouterr()
    assert "encoded" not in shown.out
    assert "Keeping" not in shown.err
    repeated = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert repeated["probe"]["encoded_images"] == 0
    assert repeated["splits"] == metrics["splits"]


GIVEN = ["--probe_poolings", "map", "--augment", "false"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--trainable", "all"], r"--probe_poolings needs .*, but --trainable is all; use"),
        (["--feature_cache", "false"], r"--feature_cache is false; leave it out"),
        (["--ema", "0.9"], r"--ema averages"),
        (["--optim", "sgd"], r"plain AdamW; leave --optim"),
        (["--augment", "true", "--mixup_alpha", "0.2"], r"mixup and CutMix .*; set both to 0"),
        (["--metric_for_best_model", "train_loss"], r"is train_loss; use validation_accuracy"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], r"reduce_lr_on_plateau follows one run"),
        (["--probe_solver", "ridge", "--objective", "sigmoid"], r"ridge goes with .*; use adamw"),
        (["--probe_solver", "lbfgs", "--probe_weight_decays", "0"], r"lbfgs chooses the strength"),
        (["--probe_solver", "ridge", "--probe_learning_rates", "1"], r"ridge takes no --probe_l"),
        (["--probe_solver", "ridge", "--head_init", "probe"], r"ridge needs no start"),
        (["--probe_solver", "lbfgs", "--label_smoothing_factor", "0.1"], r"factor 0.1; set it to"),
        (["--probe_learning_rates", "0.1", "0"], r"--probe_learning_rates is 0.0; it must be"),
        (["--probe_weight_decays", "1", "1"], r"names a value twice \(1.0, 1.0\); drop one"),
        (["--probe_poolings", "max"], r"--probe_poolings is 'max'; choose one of map, mean"),
        (["--augmented_views", "0"], r"--augmented_views is 0; it must lie between"),
        (["--probe_solver", "svm"], r"choose one of adamw, lbfgs, ridge"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_once(tmp_path, more, message):
    options = small_options(tmp_path, tmp_path, tmp_path / "run", "--trainable", "head")
    kinds = (DataArguments, AugmentationArguments, ModelArguments, SiglipTrainingArguments)

    def check():
        _, augmentation, model, training, probe = parse_arguments(
            (*kinds, ProbeArguments), [*options, *GIVEN, *more], prog="train.py", description=""
        )
        check_probe(probe, augmentation, model, training)

    with pytest.raises(InputError, match=message):
        check()


def test_mean_pooling_has_no_zero_shot_head_to_start_from(arrange):
    arguments = arrange(model={"head_init": "text"}, probe={"probe_poolings": ["map", "mean"]})
    with pytest.raises(InputError, match="--probe_poolings mean has no place in the text tower"):
        check_arguments(arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9},
        {"augmentation": {"mixup_alpha": 0.2}},
        {"optim": "sgd"},
        {"model": {"head_init": "probe"}, "wise_ft": "0.5"},
    ],
)
def test_runs_that_need_the_encoder_in_every_step_get_it(arrange, options):
    arguments = arrange(**options)
    check_arguments(arguments)
    assert not fits_on_features(arguments)


@pytest.mark.slow
def test_two_processes_fit_what_one_does(flowers_dir, nano_dir, tmp_path):
    data_dir = write_folder(flowers_dir, tmp_path / "flowers")

    def options(name, batch_size):
        return [
            *("--model_name_or_path", str(nano_dir), "--data_dir", str(data_dir)),
            *("--output_dir", str(tmp_path / name), "--trainable", "head", "--augment", "false"),
            *("--per_device_train_batch_size", str(batch_size), "--num_train_epochs", "2"),
            *("--probe_learning_rates", "1e-3", "1e-2", "--probe_poolings", "map", "mean"),
            *("--bf16", "false", "--use_cpu", "true", "--disable_tqdm", "true"),
            *("--logging_steps", "1", "--cache_dir", str(tmp_path / f"cache-{name}")),
        ]

    assert train(options("one", 16)) == 0
    outcome = launch("train.py", *options("two", 8))
    assert outcome.returncode == 0, outcome.stderr
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    )
    assert two["training"]["processes"] == 2
    for ours, theirs in zip(two["probe"]["settings"], one["probe"]["settings"], strict=True):
        assert_same_row(ours, theirs, rel=1e-3)
    weights = [
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3)
    histories = [
        list(csv.DictReader((tmp_path / name / "history.csv").open())) for name in ("one", "two")
    ]
    for ours, theirs in zip(histories[1], histories[0], strict=True):
        assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-3)
    assert train([*options("two", 8), "--overwrite_output_dir"]) == 0
    again = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert again["probe"]["encoded_images"] == 0
