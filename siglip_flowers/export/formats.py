"""A classifier as a graph from inputs to logits, for any batch: ``torch.export`` and ONNX."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from siglip_flowers.base.errors import InputError, RunError
from siglip_flowers.base.text import first_line

METADATA_FILE = "metadata.json"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Protocol Buffers, the format of ONNX files, counts bytes in 31 bits.
MAX_ONNX_BYTES = 2**31 - 1
MAX_BATCH = 2**16
# Most of the weights belong to these operators; the rest stays in float32.
_INT8_OPERATORS = ["MatMul", "Gemm"]


class LogitsModel(nn.Module):
    """A classifier that takes and returns plain tensors, in evaluation mode.

    Args:
        model: The classifier.
        names: Its arguments, in the order in which they are given.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs of a batch to logits (B, C)."""
        logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def trace_program(
    model: nn.Module, names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> ExportedProgram:
    """Export a classifier with a batch of any size.

    Args:
        model: The classifier.
        names: Its arguments.
        inputs: A batch of at least three images.

    Raises:
        RunError: The installed torch and transformers cannot trace this model.
    """
    batch = Dim("batch", min=1, max=MAX_BATCH)
    # torch would take a batch of one or two for a constant or another axis.
    sample = tuple(tensor[:3] for tensor in inputs)
    try:
        with torch.no_grad():
            return torch.export.export(
                LogitsModel(model, names),
                sample,
                dynamic_shapes=(tuple({0: batch} for _ in sample),),
            )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"torch {torch.__version__} cannot trace this model ({first_line(error)}). Upgrade "
            "torch and transformers, or export --format safetensors_native."
        ) from error


def save_program(program: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Write a program with the facts inside it, as ``metadata.json``."""
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(facts)})


def load_program(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a program: a module from inputs to logits, and the facts."""
    files = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=files)
    return program.module(), json.loads(files[METADATA_FILE])


def check_onnx_packages() -> None:
    """Raise InputError unless the packages of the extra ``export`` are installed."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"--format onnx requires {', '.join(missing)}; run pip install "
            "'siglip_flowers[export]'."
        )


def check_onnx_size(model: nn.Module) -> None:
    """Raise InputError if the weights of a model do not fit into one ONNX file."""
    size = sum(
        tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())
    )
    if size > MAX_ONNX_BYTES:
        raise InputError(
            f"The model has {size / 2**30:.2f} GiB of weights; an ONNX file holds at most "
            f"{MAX_ONNX_BYTES / 2**30:.2f}. Use --format exported_program."
        )


def write_onnx(
    program: ExportedProgram, names: Sequence[str], path: Path, facts: dict[str, Any]
) -> None:
    """Convert a program, which loses its run-time checks, and write it with facts as metadata.

    Raises:
        RunError: The installed packages cannot convert it.
    """
    import onnx

    _drop_checks(program)
    try:
        with _silence():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=tuple({0: "batch"} for _ in names),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"torch {torch.__version__} cannot convert this model to ONNX ({first_line(error)}). "
            "Upgrade torch, onnx and onnxscript, or export --format exported_program."
        ) from error
    assert converted is not None
    model = converted.model_proto
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in facts.items()
    }
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)


def _drop_checks(program: ExportedProgram) -> None:
    """Remove the run-time checks of inputs, for which ONNX has no operators."""
    graph = program.graph_module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and "_assert" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


class OnnxClassifier:
    """An ONNX file ready to run on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.names = [item.name for item in self.session.get_inputs()]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Map inputs, in the order of the file's, to logits (B, C) float32."""
        feed = {name: tensor.numpy() for name, tensor in zip(self.names, inputs, strict=True)}
        return torch.from_numpy(np.asarray(self.session.run(None, feed)[0]))


def write_int8(source: Path, path: Path) -> None:
    """Write an ONNX file again with 8-bit weights, one scale per channel.

    Activations are scaled at run time.

    Args:
        source: The file in float32.
        path: The file to write.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as directory, _silence():
        prepared = Path(directory) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantization.quantize_dynamic(
            prepared,
            path,
            op_types_to_quantize=_INT8_OPERATORS,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide the progress and warnings of converters; errors are still raised."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
