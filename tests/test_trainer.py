"""The training loop: deterministic, resumable, and honest about what it logs."""

import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.config import DataArguments
from siglip_flowers.data.rows import image_ids
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.metrics.classification import compute_metrics
from siglip_flowers.model.ensemble import AVERAGE_FILE
from siglip_flowers.model.loading import load_image_processor
from siglip_flowers.training.build import draw_train_sample
from siglip_flowers.training.checkpoints import CheckpointingTrainer
from siglip_flowers.training.results import describe_training
from siglip_flowers.training.trainer import PRIVATE_OVERRIDES, SiglipTrainer
from tests.small_flowers import build_flowers
from tests.small_trainers import copy_weights, list_changed, start_trainer

DECODED = DataArguments(pixel_cache=False)

CROPS = {"train_resize_scale": 1.0, "crop_min_scale": 0.4}


@pytest.fixture(scope="module")
def data(flowers_dir):
    """64 training, 20 validation and 12 test photographs of 4 classes."""
    return build_flowers(flowers_dir)


@pytest.fixture
def start(tiny_dir, data, tmp_path):
    """Build a Trainer as a run does."""

    def start(name="run", augmentation=None, model=None, **options):
        defaults = {
            "per_device_train_batch_size": 16,
            "per_device_eval_batch_size": 7,
            "train_eval_samples": 9,
            "learning_rate": 1e-4,
        }
        options = {**defaults, **options}
        return start_trainer(tiny_dir, data, tmp_path / name, model, augmentation, **options)

    return start


def list_logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


RECIPES = {
    "cross_entropy": {
        "augmentation": {**CROPS, "mixup_alpha": 0.2, "cutmix_alpha": 1.0},
        "label_smoothing_factor": 0.1,
        "ema": 0.9,
    },
    "sigmoid": {
        "augmentation": CROPS,
        "objective": "sigmoid",
        "model": {"head_init": "text", "trainable": "last:1"},
    },
    "contrastive": {"augmentation": CROPS, "objective": "contrastive"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_seed_gives_bit_identical_weights_and_another_seed_others(start, recipe):
    runs = []
    for seed in (3, 3, 4):
        trainer = start(**RECIPES[recipe], seed=seed, max_steps=2)
        trainer.train()
        trainer.finish()
        runs.append((copy_weights(trainer), list_logged(trainer, "loss")))
    (first, losses), (same, same_losses), (other, _) = runs
    assert losses == same_losses
    assert not list_changed(first, same)
    assert list_changed(first, other)
    assert np.isfinite(losses).all()


RESUMED = {
    **RECIPES,
    "sampler": {"class_balance": "sampler"},
    "patches": {"patch_drop": 0.5, "objective": "sigmoid"},
}


@pytest.mark.usefixtures("_unset_determinism")
@pytest.mark.parametrize("recipe", ["cross_entropy", "contrastive", "sampler", "patches"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(start, tmp_path, recipe):
    options = {
        **RESUMED[recipe],
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,  # in the middle of an epoch of 4 steps
        "save_total_limit": 3,
        "logging_steps": 2,  # a row is begun before the checkpoint
        "full_determinism": True,
        "ema": 0.9,
    }
    whole = start("whole", **options)
    whole.train()
    averages = {name: value.clone() for name, value in whole.average.weights.items()}
    checkpoint = tmp_path / "resumed" / "checkpoints" / "checkpoint-3"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-3", checkpoint)
    resumed = start("resumed", **options)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.fill_(0.5)  # nothing may be left of where it started
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 6
    assert not list_changed(copy_weights(whole), copy_weights(resumed))
    assert resumed.average.updates == whole.average.updates == 6
    assert not list_changed(averages, resumed.average.weights)
    assert list_logged(whole, "loss") == list_logged(resumed, "loss")
    assert list_logged(whole, "accuracy") == list_logged(resumed, "accuracy")
    # The duration is that of the whole run, not of the part after the checkpoint.
    earlier = json.loads((checkpoint / "clock.json").read_text())["seconds"]
    assert 0 < earlier < resumed.throughput.total_seconds()


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"model": {"trainable": "head"}}, ("classifier.",)),
        (
            {"model": {"trainable": "last:1"}},
            ("classifier.", "vision_model.encoder.layers.1.", "vision_model.head.",
             "vision_model.post_layernorm."),
        ),
        ({"objective": "contrastive", "train_text_tower": False}, ("vision_model.", "logit_")),
    ],
)  # fmt: skip
def test_frozen_parameters_do_not_move_and_trained_ones_do(start, options, trained):
    trainer = start(**options, weight_decay=0.5, max_steps=2)
    before = copy_weights(trainer)
    trainer.train()
    changed = list_changed(before, copy_weights(trainer))
    assert changed == {name for name in before if name.startswith(trained)}


@pytest.mark.parametrize("mixing", [{}, {"cutmix_alpha": 1.0}])
def test_logged_loss_and_accuracy_are_those_of_the_batches_since_the_last_row(start, mixing):
    trainer = start(
        augmentation={**CROPS, **mixing}, logging_steps=2, gradient_accumulation_steps=2
    )
    objective, seen = trainer.objective, []

    def listen(model, batch):
        loss, logits = objective(model, batch)
        classes = batch.targets if not mixing else batch.targets.argmax(1)
        seen.append((loss.mean().item(), (logits.argmax(1) == classes).float().mean().item()))
        return loss, logits

    trainer.objective = listen
    trainer.train()
    rows = np.array(seen).reshape(2, 4, 2).mean(1)  # two rows, each of 2 steps of 2 batches
    np.testing.assert_allclose(list_logged(trainer, "loss"), rows[:, 0], rtol=1e-4)
    np.testing.assert_allclose(list_logged(trainer, "accuracy"), rows[:, 1], rtol=1e-5)


@pytest.mark.parametrize("objective", ["cross_entropy", "sigmoid", "contrastive"])
def test_evaluation_figures_are_those_of_single_images(start, data, tiny_dir, objective):
    trainer = start(objective=objective, augmentation=CROPS, max_steps=2)
    trainer.train()
    figures = trainer.evaluate()
    model = trainer.model.fold().eval()
    processor = load_image_processor(str(tiny_dir))
    activation = "softmax" if objective == "cross_entropy" else "sigmoid"
    samples = {
        "validation": data.splits["validation"],
        "train": draw_train_sample(trainer.run, data),
    }
    for split, rows in samples.items():
        # One image at a time, through transformers' own processor.
        with torch.no_grad():
            images = [processor(image, return_tensors="pt") for image in rows["image"]]
            logits = torch.cat([model(**image).logits for image in images]).numpy()
        labels = np.array(rows["label"])
        result = evaluate_split(model, processor, rows, split, PassOptions(6, DECODED))
        np.testing.assert_allclose(result.logits, logits, atol=1e-4, rtol=1e-4)
        for key, value in compute_metrics(logits, labels, activation).items():
            assert figures[f"eval_{split}_{key}"] == pytest.approx(value, rel=1e-4), key
            assert result.metrics[key] == pytest.approx(value, rel=1e-4), key
        assert result.labels.tolist() == labels.tolist()
        np.testing.assert_allclose(
            result.probabilities, model.to_probabilities(torch.from_numpy(logits)), atol=1e-4
        )


def test_moving_average_is_evaluated_saved_and_kept_at_its_best(start, tmp_path):
    trainer = start(
        ema=0.8, max_steps=6, learning_rate=5e-4, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, save_total_limit=3, load_best_model_at_end=True,
    )  # fmt: skip
    own = []

    def keep(*_):
        own.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(keep)
    trainer.train()
    assert trainer.average.updates == len(own) == 6
    # Evaluations leave the weights that train as they are, and the checkpoints hold those.
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = load_file(checkpoints / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(saved[name], own[5][name]) for name in own[5])
    assert list_changed(own[5], trainer.average.weights)
    trainer.finish()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    average = load_file(f"{best}/{AVERAGE_FILE}")
    assert not list_changed(
        average, {name: p.detach() for name, p in trainer.model.named_parameters()}
    )
    history = list_logged(trainer, "eval_validation_accuracy")
    assert trainer.state.best_metric == max(history)
    # A run names its best step only if it keeps those weights.
    assert describe_training(trainer, 1.0)["best_step"] == trainer.state.best_global_step
    trainer.args.load_best_model_at_end = False
    assert describe_training(trainer, 1.0)["best_step"] is None
    trainer.average = None  # what is left is the model as it will be saved
    again = trainer.evaluate()["eval_validation_accuracy"]
    assert again == pytest.approx(max(history), abs=1e-12)


@pytest.mark.filterwarnings("error::DeprecationWarning:siglip_flowers")
@pytest.mark.filterwarnings("error::FutureWarning:siglip_flowers")
def test_our_own_calls_use_nothing_that_is_deprecated(start, caplog):
    # It passes nothing on to the root logger, which caplog listens to.
    logging.getLogger("transformers").addHandler(caplog.handler)
    trainer = start(gradient_checkpointing=True, ema=0.5, max_steps=1)
    trainer.train()
    trainer.evaluate()
    last = {name: weight.clone() for name, weight in trainer.average.weights.items()}
    trainer.finish()
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "deprecat" not in caplog.text.lower()
    # Without checkpoints the last average is kept.
    assert not list_changed(
        last, {name: p.detach() for name, p in trainer.model.named_parameters()}
    )


def test_training_ends_after_evaluations_without_a_better_one(start):
    options = {"metric_for_best_model": "validation_accuracy", "early_stopping_patience": 2}
    # The accuracy stays as it is; the loss may fall in its last digit.
    options |= {"learning_rate": 1e-12, "head_learning_rate": 1e-12, "max_steps": 9}
    trainer = start(eval_strategy="steps", eval_steps=2, **options)
    trainer.train()
    assert trainer.state.global_step == 6


def test_patches_are_left_out_of_the_first_steps_alone(start):
    trainer, counts = start(patch_drop=0.5, patch_drop_until=0.5), []
    trainer.model.vision_model.encoder.register_forward_pre_hook(
        lambda _, args, named: counts.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    trainer.train()
    assert counts == [2, 2, 4, 4]


def test_private_methods_that_are_overridden_are_listed_with_a_reason():
    names = {*vars(SiglipTrainer), *vars(CheckpointingTrainer)}
    own = {name for name in names if hasattr(Trainer, name) and name[:2] != "__"} - {"args"}
    private = {name for name in own if name.startswith("_")}
    assert private == set(PRIVATE_OVERRIDES)
    assert len(private) <= 4
    assert own - private <= {
        *("train", "training_step", "compute_loss", "log", "create_optimizer", "evaluate"),
        *("get_train_dataloader", "get_eval_dataloader", "get_batch_samples", "prediction_step"),
    }


def test_a_parameter_that_would_not_learn_stops_the_run_before_its_first_step(start):
    trainer = start()
    trainer.model.idle = torch.nn.Parameter(torch.zeros(1))
    before = copy_weights(trainer)
    with pytest.raises(RunError, match=r"1 of \d+ trained parameters have no gradient: idle\."):
        trainer.train()
    assert not list_changed(copy_weights(trainer), before)


def test_a_last_batch_is_dropped_in_training_alone(start, data):
    trainer = start(dataloader_drop_last=True, per_device_train_batch_size=30, max_steps=-1)
    assert len(trainer.get_train_dataloader()) == 2  # of 64 images
    batches = [len(batch["labels"]) for batch in trainer.get_eval_dataloader("validation")]
    assert sum(batches) == len(data.splits["validation"]) == 20
    assert trainer.args.dataloader_drop_last
    trainer = start(dataloader_drop_last=True, per_device_train_batch_size=65)
    with pytest.raises(InputError, match="fewer images than one batch of 65"):
        trainer.train()


@pytest.mark.parametrize(
    ("overflows", "bad_loss", "message"),
    [
        (9, None, None),
        (10, None, "overflowed float16 in 10 steps in a row, with no checkpoint yet"),
        (0, 4, "loss is not finite in step 4"),
    ],
)
def test_under_a_gradient_scaler_a_bad_loss_or_ten_overflows_in_a_row_stop(
    start, overflows, bad_loss, message
):
    """float16 needs a GPU, but its scaler does not."""
    trainer = start(max_steps=12, logging_steps=20)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    objective = trainer.objective

    def disturbed(model, batch):
        loss, logits = objective(model, batch)
        if batch.step < overflows:
            loss = loss + (0 * logits).sum().sqrt()  # 0, with a gradient that is not finite
        return loss * (math.nan if batch.step + 1 == bad_loss else 1), logits

    trainer.objective = disturbed
    if message is None:
        trainer.train()
        assert trainer.state.global_step == 12
    else:
        with pytest.raises(RunError, match=message):
            trainer.train()


def test_a_resumed_run_has_the_scale_of_the_losses(start, tmp_path):
    """float16 needs a GPU, but its scaler does not."""
    runs = []
    for name in ("whole", "resumed"):
        trainer = start(name, save_strategy="steps", save_steps=2, save_total_limit=3)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=3)
        objective = trainer.objective

        def overflow_at_first(model, batch, objective=objective):
            loss, logits = objective(model, batch)
            return loss + (0 * logits).sum().sqrt() if batch.step < 1 else loss, logits

        trainer.objective = overflow_at_first
        runs.append(trainer)
    whole, resumed = runs
    whole.train()
    # Halved by the first step, doubled by the three after it.
    assert whole.accelerator.scaler.get_scale() == 2**16
    checkpoint = tmp_path / "resumed" / "checkpoints" / "checkpoint-2"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-2", checkpoint)
    assert torch.load(checkpoint / "scaler.pt")["scale"] == 2**15
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.accelerator.scaler.state_dict() == whole.accelerator.scaler.state_dict()
    assert not list_changed(copy_weights(whole), copy_weights(resumed))


def test_a_checkpoint_at_an_epochs_end_has_its_evaluation_and_none_is_repeated(start, tmp_path):
    place, seen = tmp_path / "run" / "checkpoints", []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            seen.append((state.global_step, (place / f"checkpoint-{state.global_step}").exists()))

    options = {"eval_strategy": "epoch", "eval_on_start": True, "max_steps": 8}
    options |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
    for checkpoint, steps in ((None, {0, 4, 8}), (place / "checkpoint-5", {8})):
        trainer = start(**options)
        trainer.add_callback(Watch())
        trainer.train(checkpoint and str(checkpoint))
        assert {step for step, _ in seen} == steps
        assert checkpoint or not any(exists for _, exists in seen)
        assert (place / "checkpoint-8").exists()
        seen.clear()


@pytest.mark.parametrize("count, size", [(1, 4), (3, 4), (9, 9), (64, 64), (99, 64)])
def test_the_training_images_that_are_evaluated_have_every_class(start, data, count, size):
    run = start(train_eval_samples=count).run
    chosen = draw_train_sample(run, data)
    assert len(chosen) == size
    assert set(chosen["label"]) == set(range(4))
    ids = image_ids(data.splits["train"])
    assert sorted(image_ids(chosen), key=ids.index) == image_ids(chosen)
    assert image_ids(draw_train_sample(run, data)) == image_ids(chosen)
    run.data.split_seed = 1
    assert (image_ids(draw_train_sample(run, data)) == image_ids(chosen)) == (size == 64)
