"""The curve: one row per step, whatever was logged when."""

from types import SimpleNamespace

from transformers import TrainerState

from siglip_flowers.training.callbacks import ProgressLines
from siglip_flowers.training.results import COLUMNS, build_history

LOG = [
    {"loss": 4.0, "accuracy": 0.1, "learning_rate": 1e-3, "epoch": 0.5, "step": 5},
    {"loss": 3.0, "accuracy": 0.2, "learning_rate": 5e-4, "epoch": 1.0, "step": 10},
    {"eval_train_loss": 2.9, "eval_train_accuracy": 0.4, "epoch": 1.0, "step": 10},
    {"eval_validation_loss": 3.2, "eval_validation_f1_macro": 0.25, "epoch": 1.0, "step": 10},
    {"train_runtime": 9.0, "train_loss": 3.5, "epoch": 1.0, "step": 10},
]


def test_entries_of_one_step_become_one_row():
    rows = build_history(LOG)
    assert [row["step"] for row in rows] == [5, 10]
    assert all(tuple(row) == COLUMNS for row in rows)
    last = rows[1]
    assert last["loss"] == 3.0
    # Not that of the closing summary.
    assert last["train_loss"] == 2.9
    assert last["train_accuracy"] == 0.4
    assert last["validation_loss"] == 3.2
    assert last["validation_f1_macro"] == 0.25
    assert rows[0]["validation_loss"] is None


def test_a_measured_start_is_row_0():
    rows = build_history(LOG, {"loss": 4.6, "accuracy": 0.02, "other": 1.0})
    assert [row["step"] for row in rows] == [0, 5, 10]
    assert rows[0]["validation_accuracy"] == 0.02
    assert rows[0]["validation_loss"] == 4.6
    assert rows[0]["epoch"] == 0.0
    assert "other" not in rows[0]
    # A zero is a measurement.
    rows = build_history([{"eval_validation_accuracy": 0.0, "epoch": 1.0, "step": 1}])
    assert rows[0]["validation_accuracy"] == 0.0


def test_a_row_tells_the_time_left_however_long(capsys):
    args = SimpleNamespace(images_per_step=64)
    for steps, left in ((3600, "1:00:00"), (2**62, "999999999 days, 23:59:59")):
        state = TrainerState(max_steps=steps, epoch=0.0)
        ProgressLines().on_log(args, state, None, logs={"images_per_second": 64.0})
        assert f"left {left}" in capsys.readouterr().out
