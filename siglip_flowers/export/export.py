"""Write a classifier in a format that runs without this package, checked against the original."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from siglip_flowers.base.files import write_json
from siglip_flowers.export.check import compare_accuracy, compare_logits, read_inputs
from siglip_flowers.export.inputs import (
    describe_preprocessing,
    draw_images,
    name_inputs,
    prepare_images,
)
from siglip_flowers.export.onnx_file import (
    OnnxClassifier,
    check_onnx_size,
    write_int8,
    write_onnx,
)
from siglip_flowers.export.program import load_program, save_program, trace_program, wrap_logits
from siglip_flowers.model.classifier import SiglipClassifier
from siglip_flowers.model.native import NativeModel, to_native

FACTS_FILE = "export.json"
MODEL_FILES = {
    "onnx": "model.onnx",
    "exported_program": "model.pt2",
    "safetensors_native": "model.safetensors",
}
INT8_FILE = "model_int8.onnx"
CHECKED_IMAGES = 8


@dataclass(frozen=True)
class Int8Options:
    """How to round to 8 bits, and the images to do it with.

    Attributes:
        kind: ``dynamic`` or ``static``.
        train: Training images that calibrate ``static``.
        test: Images that the loss is measured on, with the model's class numbers.
    """

    kind: str
    train: datasets.Dataset
    test: datasets.Dataset


def export_model(
    model: SiglipClassifier,
    processor: Any,
    format: str,
    directory: Path,
    int8: Int8Options | None = None,
) -> dict[str, Any]:
    """Write a classifier into an existing directory and return the facts that lie beside it.

    Args:
        model: The classifier, on the CPU.
        processor: Its image processor, written beside it.
        format: One of ``MODEL_FILES``.
        directory: Where to.
        int8: Whether, and how, a file with 8-bit integers is written too.

    Raises:
        InputError: The model cannot be written in this format.
        RunError: The result is not the same model.
    """
    if format == "onnx":
        check_onnx_size(model)
    names = name_inputs(model)
    inputs = prepare_images(draw_images(CHECKED_IMAGES), processor, names)
    path = directory / MODEL_FILES[format]
    facts: dict[str, Any] = {
        "format": format,
        "inputs": {
            name: {"shape": ["batch", *tensor.shape[1:]], "dtype": str(tensor.dtype)[6:]}
            for name, tensor in zip(names, inputs, strict=True)
        },
        "output": {"name": "logits", "shape": ["batch", len(model.class_names)]},
        "activation": model.config.activation,
        "preprocessing": describe_preprocessing(processor),
        "class_names": model.class_names,
        "versions": _list_versions(format),
    }
    runner: Any
    if format == "safetensors_native":
        native: NativeModel = to_native(model)
        native.save_pretrained(directory)
        runner = wrap_logits(type(native).from_pretrained(directory), names)
    else:
        program = trace_program(model, names, inputs)
        if format == "onnx":
            write_onnx(program, names, path, facts)
            runner = OnnxClassifier(path)
        else:
            save_program(program, path, facts)
            runner, _ = load_program(path)
    facts["largest_difference"] = compare_logits(model, runner, names, inputs)
    facts["checked_images"] = f"{CHECKED_IMAGES} drawn flowers"
    if int8 is not None:
        facts["int8"] = _round_to_int8(path, processor, names, runner, int8)
    processor.save_pretrained(directory)
    write_json(directory / FACTS_FILE, facts)
    return facts


def _round_to_int8(
    path: Path, processor: Any, names: Sequence[str], exact: OnnxClassifier, options: Int8Options
) -> dict[str, Any]:
    rounded = path.with_name(INT8_FILE)
    # Small batches: the calibrator keeps what it has seen in memory.
    calibration = read_inputs(options.train, processor, names, batch_size=8)
    write_int8(path, rounded, options.kind, calibration if options.kind == "static" else ())
    figures = compare_accuracy(
        exact,
        OnnxClassifier(rounded),
        read_inputs(options.test, processor, names),
        np.asarray(options.test["label"]),
    )
    return {
        "kind": options.kind,
        "file": INT8_FILE,
        "calibration_images": len(options.train) if options.kind == "static" else 0,
        "bytes": rounded.stat().st_size,
        "bytes_float32": path.stat().st_size,
        "test": figures,
    }


def _list_versions(format: str) -> dict[str, str]:
    names = ["siglip_flowers", "torch", "transformers"]
    if format == "onnx":
        names += ["onnx", "onnxscript", "onnxruntime"]
    return {name: importlib.metadata.version(name) for name in names}
