"""What each process of a two-process launch does for test_distributed.py: see main."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch.nn.parallel import DistributedDataParallel
from transformers import SiglipForImageClassification

from siglip_flowers.commands.eval import main as evaluate_command
from siglip_flowers.config import DataArguments
from siglip_flowers.data import load_data
from siglip_flowers.evaluation.predict import PassOptions, evaluate_split
from siglip_flowers.model.loading import (
    load_classifier,
    load_image_processor,
    load_saved_classifier,
)


def evaluate(model_dir: Path, data_dir: str, limits: list[int]) -> dict[str, dict]:
    """Return what evaluate_split gives in this process, for each size of the test split."""
    model, processor = load_saved_classifier(str(model_dir)), load_image_processor(str(model_dir))
    results = {}
    for limit in limits:
        rows = load_data(DataArguments(data_dir=data_dir, max_eval_samples=limit)).splits["test"]
        result = evaluate_split(model, processor, rows, "test", PassOptions(9))
        results[str(limit)] = {
            "ids": result.ids,
            "labels": result.labels.tolist(),
            "logits": result.logits.tolist(),
            "metrics": result.metrics,
        }
    return results


def step_twice(model: torch.nn.Module) -> str:
    """Train two steps as the Trainer wraps a model without unused-parameter detection."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = DistributedDataParallel(model.train(), find_unused_parameters=False)
    torch.manual_seed(dist.get_rank())
    pixels, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    try:
        for _ in range(2):
            wrapped(pixel_values=pixels, labels=labels).loss.backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


def run_script(script: str, options: list[str]) -> int:
    """Run train.py as the launcher would, in a process that is running already."""
    sys.argv = [script, *options]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return -1


def main() -> None:
    """Evaluate a model, run each command line of the plan, and try transformers' own model.

    The plan is a JSON file with ``evaluation`` (options of eval.py), ``runs`` (name to options of
    train.py), ``data_dir``, ``limits``, ``nano`` and ``out``, the folder that every process writes
    its findings to.
    """
    plan = json.loads(Path(sys.argv[1]).read_text())
    out = Path(plan["out"])
    codes = {"eval": evaluate_command(plan["evaluation"])}
    findings: dict = {"world_size": PartialState().num_processes, "evaluations": {}}
    for name, options in plan["runs"].items():
        codes[name] = run_script("train.py", options)
        model_dir = Path(options[options.index("--output_dir") + 1]) / "model"
        findings["evaluations"][name] = evaluate(model_dir, plan["data_dir"], plan["limits"])
    names = [str(label) for label in np.arange(4)]
    findings["codes"] = codes
    findings["map"] = step_twice(load_classifier(plan["nano"], names))
    findings["mean"] = step_twice(load_classifier(plan["nano"], names, pooling="mean"))
    findings["native"] = step_twice(
        SiglipForImageClassification.from_pretrained(
            plan["nano"], num_labels=4, ignore_mismatched_sizes=True
        )
    )
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(findings))


if __name__ == "__main__":
    main()
