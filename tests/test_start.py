"""Runs that classify before their first step, and what is kept of them at the end."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from siglip_flowers.commands import eval as eval_command
from siglip_flowers.commands import train as train_command
from siglip_flowers.model.loading import load_saved_classifier

EVALUATED = 51
STEPS = 4


@pytest.fixture(scope="module")
def options(nano_dir, flowers_dir):
    return [
        *("--model_name_or_path", str(nano_dir), "--data_dir", str(flowers_dir)),
        *("--shots", "2", "--max_eval_samples", str(EVALUATED), "--train_eval_samples", "32"),
        *("--max_steps", str(STEPS), "--per_device_train_batch_size", "16"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps"),
        *("--save_steps", "2", "--bf16", "false", "--disable_tqdm", "true"),
        *("--learning_rate", "1e-3", "--train_resize_scale", "1"),
    ]


def train(*argv: str) -> dict:
    assert train_command.main(list(argv)) == 0
    directory = Path(argv[argv.index("--output_dir") + 1])
    return json.loads((directory / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_text_head_starts_as_the_zero_shot_classifier_and_wise_ft_returns_to_it(
    options, nano_dir, flowers_dir, tmp_path, capsys
):
    argv = [
        *("--zero_shot", "--model_name_or_path", str(nano_dir), "--data_dir", str(flowers_dir)),
        *("--max_eval_samples", str(EVALUATED), "--split", "validation"),
        *("--output_dir", str(tmp_path)),
    ]
    assert eval_command.main(argv) == 0
    assert "(zero-shot)" in capsys.readouterr().out
    zero_shot = json.loads((tmp_path / "metrics_validation.json").read_text(encoding="utf-8"))
    assert zero_shot["zero_shot"] is True
    assert zero_shot["n"] == EVALUATED

    output_dir = tmp_path / "run"
    recipe = ["--objective", "sigmoid", "--head_init", "text", "--wise_ft", "sweep"]
    metrics = train(*options, *recipe, "--output_dir", str(output_dir))
    start, accuracy = metrics["start"], zero_shot["accuracy"]
    assert (start["kind"], start["split"]) == ("zero-shot", "validation")
    assert start["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert start["loss"] == pytest.approx(zero_shot["loss"], rel=1e-5)
    printed = capsys.readouterr().out
    assert f"before the first step: zero-shot validation accuracy {accuracy:.2%}" in printed

    rows = metrics["wise_ft"]["sweep"]
    assert [row["alpha"] for row in rows] == pytest.approx([tenth / 10 for tenth in range(11)])
    assert rows[0]["validation_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    best = max(row["validation_accuracy"] for row in rows)
    chosen = metrics["wise_ft"]["alpha"]
    assert chosen in [row["alpha"] for row in rows if row["validation_accuracy"] == best]
    assert f"WiSE-FT: alpha {chosen:g} between" in printed
    assert metrics["splits"]["validation"]["accuracy"] == pytest.approx(best, abs=1e-12)
    # The row before the first step opens the curve.
    first = (output_dir / "history.csv").read_text(encoding="utf-8").splitlines()[1]
    assert first.startswith("0,0.0,")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["sigmoid", "contrastive"])
def test_the_moving_average_is_what_is_saved(options, objective, tmp_path):
    output_dir = tmp_path / "run"
    recipe = ["--objective", objective, "--head_init", "text", "--ema", "0.9"]
    metrics = train(*options, *recipe, "--output_dir", str(output_dir))
    best = metrics["training"]["best_step"]
    average = load_file(output_dir / "checkpoints" / f"checkpoint-{best}" / "ema.safetensors")
    saved = load_saved_classifier(str(output_dir / "model"))
    for name, value in saved.vision_model.state_dict().items():
        torch.testing.assert_close(value, average[f"vision_model.{name}"], rtol=0, atol=0)
    # One ordinary classifier, whatever the objective: scale and bias are folded into its head.
    assert isinstance(saved.classifier, torch.nn.Linear)
    assert saved.config.activation == "sigmoid"
    prefix = "" if objective == "contrastive" else "classifier."
    torch.testing.assert_close(
        saved.classifier.bias, average[f"{prefix}logit_bias"].expand(102), rtol=0, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_uses_the_gpu(options, tmp_path):
    on_gpu = [option for option in options if option not in ("--bf16", "false")]
    metrics = train(*on_gpu, "--output_dir", str(tmp_path / "run"))
    assert metrics["environment"]["device"] == torch.cuda.get_device_name()
    assert metrics["training"]["precision"] == "bf16"
