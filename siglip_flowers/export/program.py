"""A classifier as one graph of torch operators: logits from its inputs, for any batch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from siglip_flowers.base.errors import RunError
from siglip_flowers.model.weights import first_line

METADATA_FILE = "metadata.json"
MOST_IMAGES = 2**16
_SAMPLE_BATCH = 3


class SquareLogits(nn.Module):
    """A fixed-resolution classifier that returns a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, S, S) to logits (B, C)."""
        logits: torch.Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class NaflexLogits(nn.Module):
    """A NaFlex classifier that returns a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor,
        spatial_shapes: torch.Tensor,
    ) -> torch.Tensor:
        """Map patches (B, P, K), their mask (B, P) and shapes (B, 2) to logits (B, C)."""
        logits: torch.Tensor = self.model(
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
        ).logits
        return logits


def wrap_logits(model: Any, names: Sequence[str]) -> nn.Module:
    """Return the model as a module of tensors, in evaluation mode."""
    return (SquareLogits(model) if len(names) == 1 else NaflexLogits(model)).eval()


def trace_program(
    model: Any, names: Sequence[str], inputs: Sequence[torch.Tensor]
) -> ExportedProgram:
    """Export a classifier with a batch of any size.

    Args:
        model: The classifier.
        names: Of its inputs.
        inputs: A batch of at least three images.

    Raises:
        RunError: The installed torch and transformers cannot trace this model.
    """
    batch = Dim("batch", min=1, max=MOST_IMAGES)
    # With one or two images, torch would take the number for a constant or another axis.
    sample = tuple(tensor[:_SAMPLE_BATCH] for tensor in inputs)
    try:
        with torch.no_grad():
            return torch.export.export(
                wrap_logits(model, names),
                sample,
                dynamic_shapes=tuple({0: batch} for _ in sample),
            )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"torch {torch.__version__} cannot trace this model ({first_line(error)}); upgrade "
            "torch and transformers, or export --format safetensors_native."
        ) from error


def drop_checks(program: ExportedProgram) -> None:
    """Take the run-time checks of inputs out of a program: ONNX has no operators for them."""
    graph = program.graph_module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and "_assert" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def save_program(program: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Write a program with the facts inside it, as ``metadata.json``."""
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(facts)})


def load_program(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a program back: a module from inputs to logits, and the facts."""
    files = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=files)
    return program.module(), json.loads(files[METADATA_FILE])
