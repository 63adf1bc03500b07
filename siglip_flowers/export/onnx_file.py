"""A classifier as an ONNX file, in float32 or with 8-bit integers, and how one is run."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.export.program import drop_checks
from siglip_flowers.model.weights import first_line

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUT = "logits"
# A file holds no more: its format, Protocol Buffers, counts in 31 bits.
LARGEST_BYTES = 2**31 - 1
# Weights of these operators are most of the model; the rest stays in float32.
_INT8_OPERATORS = ["MatMul", "Gemm"]


def check_onnx_packages() -> None:
    """Raise InputError unless the packages of the extra ``export`` are installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx needs {', '.join(missing)}, which is not installed: pip install "
            "'siglip_flowers[export]'."
        )


def check_onnx_size(model: torch.nn.Module) -> None:
    """Raise InputError if a model's weights do not fit into one ONNX file."""
    size = sum(
        tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
    )
    if size > LARGEST_BYTES:
        raise InputError(
            f"The model has {size / 2**30:.2f} GiB of weights, and an ONNX file holds at most "
            f"{LARGEST_BYTES / 2**30:.2f}; use --format exported_program."
        )


def write_onnx(
    program: ExportedProgram, names: Sequence[str], path: Path, facts: dict[str, Any]
) -> None:
    """Convert a program, which loses its checks, and write it with the facts as metadata.

    Raises:
        RunError: The installed packages cannot convert it.
    """
    import onnx

    drop_checks(program)
    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(names),
                output_names=[OUTPUT],
                dynamic_shapes=tuple({0: "batch"} for _ in names),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"torch {torch.__version__} cannot convert this model to ONNX ({first_line(error)}); "
            "upgrade torch, onnx and onnxscript, or export --format exported_program."
        ) from error
    assert converted is not None
    model = converted.model_proto
    onnx.helper.set_model_props(
        model,
        {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in facts.items()
        },
    )
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


class OnnxClassifier:
    """An ONNX file ready to run on the CPU."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = [item.name for item in self.session.get_inputs()]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs, in the order of the file's, to logits (B, C) float32."""
        feed = {name: tensor.numpy() for name, tensor in zip(self.names, inputs, strict=True)}
        return torch.from_numpy(np.asarray(self.session.run(None, feed)[0]))


def write_int8(
    source: Path, path: Path, kind: str, batches: Iterable[Sequence[torch.Tensor]] = ()
) -> None:
    """Write an ONNX file again with 8-bit weights, one scale a channel.

    Args:
        source: The file in float32.
        path: Where the other goes.
        kind: ``dynamic``: activations are scaled as they come; ``static``: by scales fixed here.
        batches: For ``static``, inputs that show how large activations get.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, names: Sequence[str]) -> None:
            self.feeds = (
                {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}
                for batch in batches
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as directory, _quiet():
        prepared = Path(directory) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        options: dict[str, Any] = {
            "op_types_to_quantize": _INT8_OPERATORS,
            "per_channel": True,
            "weight_type": QuantType.QInt8,
        }
        if kind == "dynamic":
            quantize_dynamic(prepared, path, **options)
        else:
            names = OnnxClassifier(prepared).names
            quantize_static(prepared, path, Reader(names), **options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' progress to themselves: errors are raised all the same."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
