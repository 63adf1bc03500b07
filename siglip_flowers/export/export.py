"""Write a classifier in a format that runs without this package, checked against the original."""

import importlib.metadata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from siglip_flowers.base.errors import RunError
from siglip_flowers.base.files import write_json
from siglip_flowers.data.pixels.patches import PatchBudget
from siglip_flowers.data.pixels.tensors import PixelNormalizer, read_form
from siglip_flowers.export.formats import (
    ONNX_PACKAGES,
    LogitsModel,
    OnnxClassifier,
    check_onnx_size,
    load_program,
    save_program,
    trace_program,
    write_int8,
    write_onnx,
)
from siglip_flowers.model.classifier import SiglipClassifier, to_native
from siglip_flowers.model.towers import is_naflex
from siglip_flowers.model.weights import quiet_transformers

MODEL_FILES = {
    "onnx": "model.onnx",
    "exported_program": "model.pt2",
    "safetensors_native": "model.safetensors",
}
FACTS_FILE, INT8_FILE = "export.json", "model_int8.onnx"
TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 2, 5, 8)
BATCH_SIZE = 32
# Width and height; NaFlex keeps the aspect ratio.
_DRAWN_SHAPES = ((128, 128), (128, 96), (80, 128), (128, 64), (112, 112))

# From inputs, in order, to logits (B, C).
Runner = Callable[..., torch.Tensor]


def export_model(
    model: SiglipClassifier,
    processor: Any,
    format: str,
    directory: Path,
    test: datasets.Dataset | None = None,
) -> dict[str, Any]:
    """Write a classifier into an existing directory and return what its ``export.json`` holds.

    Args:
        model: The classifier, on the CPU.
        processor: Its image processor, which is written too.
        format: One of ``MODEL_FILES``.
        directory: Where to write.
        test: Images with the model's class numbers, which measure the accuracy of a file in 8 bits;
            None writes no such file.

    Raises:
        InputError: The model cannot be written in this format.
        RunError: The result is not the same model.
    """
    if format == "onnx":
        check_onnx_size(model)
    names = name_inputs(model)
    inputs = prepare_images(draw_images(CHECKED_BATCHES[-1]), processor, names)
    path = directory / MODEL_FILES[format]
    packages = ["siglip_flowers", "torch", "transformers"]
    if format == "onnx":
        packages += ONNX_PACKAGES
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
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    runner: Any
    if format == "safetensors_native":
        native: Any = to_native(model)
        with quiet_transformers():
            native.save_pretrained(directory)
        runner = LogitsModel(type(native).from_pretrained(directory), names)
    else:
        program = trace_program(model, names, inputs)
        if format == "onnx":
            write_onnx(program, names, path, facts)
            runner = OnnxClassifier(path)
        else:
            save_program(program, path, facts)
            runner, _ = load_program(path)
    facts["largest_difference"] = compare_logits(LogitsModel(model, names), runner, inputs)
    facts["checked_images"] = len(inputs[0])
    if test is not None:
        facts["int8"] = _quantize(path, processor, names, runner, test)
    processor.save_pretrained(directory)
    write_json(directory / FACTS_FILE, facts)
    return facts


def name_inputs(model: SiglipClassifier) -> tuple[str, ...]:
    """Return the arguments that an exported model takes, in order."""
    if is_naflex(model.config.vision_config):
        return ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    return ("pixel_values",)


def describe_preprocessing(processor: Any) -> dict[str, Any]:
    """Return how an image becomes the model's input, for users of the file alone."""
    form, normalizer = read_form(processor), PixelNormalizer(processor)
    size = form.size
    facts: dict[str, Any] = {
        "decode": [
            "turn upright by the EXIF orientation",
            "keep the 8 high bits of 16-bit samples",
            "put transparency on white",
            "convert to RGB",
        ],
        "resample": Image.Resampling(form.resample).name.lower(),
        "rescale_factor": normalizer.rescale_factor,
        "mean": list(normalizer.mean),
        "std": list(normalizer.std),
        "order": "resize, times rescale_factor, minus mean, divided by std",
    }
    if isinstance(size, PatchBudget):
        return facts | {
            "patch_size": size.patch_size,
            "max_num_patches": size.max_num_patches,
            "resize": "keep the aspect ratio; whole patches, at most max_num_patches",
            "layout": "patches, each in the order row, column, color; zeros after the last one",
        }
    return facts | {
        "size": {"height": size, "width": size},
        "resize": "squash to the size, no crop",
        "layout": "NCHW",
    }


def draw_images(count: int) -> list[Image.Image]:
    """Return colored noise of several shapes."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [
        Image.fromarray(pixels).resize(_DRAWN_SHAPES[number % len(_DRAWN_SHAPES)])
        for number, pixels in enumerate(noise)
    ]


def prepare_images(
    images: Iterable[Image.Image], processor: Any, names: Sequence[str]
) -> tuple[torch.Tensor, ...]:
    """Return the model's inputs for images, in the order of the names."""
    pixels = torch.stack(list(map(read_form(processor).resize, images)))
    prepared = PixelNormalizer(processor).prepare(pixels)
    return tuple(prepared[name].contiguous() for name in names)


@torch.no_grad()
def compare_logits(original: Runner, exported: Runner, inputs: Sequence[torch.Tensor]) -> float:
    """Return the largest difference of logits, over batches of several sizes.

    Raises:
        RunError: It is more than ``TOLERANCE`` of the largest logit, or of 1, or the shapes differ.
    """
    largest = 0.0
    for size in CHECKED_BATCHES:
        batch = [tensor[:size] for tensor in inputs]
        expected, found = original(*batch), exported(*batch)
        same_shape = expected.shape == found.shape
        difference = float((expected - found).abs().max()) if same_shape else float("inf")
        # The scale of a text head, about 100, multiplies rounding too.
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        # NaN fails as well.
        if not difference <= allowed:
            raise RunError(
                f"The exported model's logits differ from the original's by {difference:.3g} in a "
                f"batch of {size}, more than {allowed:.3g}; nothing was written. Upgrade torch and "
                "the packages of the extra 'export'."
            )
        largest = max(largest, difference)
    return largest


def _quantize(
    path: Path, processor: Any, names: Sequence[str], exact: Runner, test: datasets.Dataset
) -> dict[str, Any]:
    quantized = path.with_name(INT8_FILE)
    write_int8(path, quantized)
    runner = OnnxClassifier(quantized)
    answers = []
    for start in range(0, len(test), BATCH_SIZE):
        batch = prepare_images(test[start : start + BATCH_SIZE]["image"], processor, names)
        answers.append(torch.stack([exact(*batch).argmax(1), runner(*batch).argmax(1)]))
    first, second = torch.cat(answers, dim=1).numpy()
    labels = np.asarray(test["label"])
    return {
        "file": INT8_FILE,
        "bytes": quantized.stat().st_size,
        "bytes_float32": path.stat().st_size,
        "test": {
            "n": len(labels),
            "accuracy": float(np.mean(first == labels)),
            "accuracy_int8": float(np.mean(second == labels)),
            "agreement": float(np.mean(first == second)),
        },
    }
