"""Low-rank adapters (LoRA, DoRA) on a frozen model, with ``peft``.

They are injected into the model, which keeps its class and the interface of a classifier.
"""

import copy
import dataclasses
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from siglip_flowers.base.errors import InputError
from siglip_flowers.config import ModelArguments
from siglip_flowers.model.classifier import SiglipClassifier

ADAPTER_NAME = "default"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class DroppedLinear(nn.Linear):
    """The first factor of an adapter, with dropout on its input, as ``nn.Dropout`` before it.

    The backward pass draws the mask again from the same random state, so that neither it nor the
    dropped input is kept. Those would take more memory than everything that is saved otherwise.
    """

    def __init__(self, factor: nn.Linear, probability: float) -> None:
        super().__init__(factor.in_features, factor.out_features, bias=False, device="meta")
        self.weight = factor.weight
        self.probability = probability

    def forward(self, input: Tensor) -> Tensor:  # the parent's name
        """Map (..., inputs) to (..., rank)."""
        if not self.training:
            return super().forward(input)
        projected: Tensor = checkpoint(self._drop_and_project, input, use_reentrant=False)
        return projected

    def _drop_and_project(self, values: Tensor) -> Tensor:
        return super().forward(dropout(values, self.probability))


def check_peft() -> None:
    """Raise InputError unless ``peft`` is installed."""
    if find_spec("peft") is None:
        raise InputError("--lora_r requires the package peft; install it with 'pip install peft'.")


def find_targets(model: nn.Module, words: Collection[str]) -> list[str]:
    """Return the modules of both towers whose last name is one of the words.

    The output projection of the pooling head's attention is left out: its forward method is never
    called, so that an adapter on it would have no effect before it is merged.
    """
    found = []
    for name, module in model.named_modules():
        tower, _, rest = name.partition(".")
        parent, _, word = rest.rpartition(".")
        if tower not in ("vision_model", "text_model") or word not in words:
            continue
        fused = isinstance(module, nn.MultiheadAttention)
        within_fused = parent.endswith("head.attention")
        if fused or (isinstance(module, nn.Linear) and not within_fused):
            found.append(name)
    return found


def add_adapters(model: Any, options: ModelArguments) -> None:
    """Freeze the model and add adapters; only they and the head train from now on.

    The head is the classification head, or with both towers the temperature and bias of the loss.
    A frozen text tower gets no adapters.

    Raises:
        InputError: No module of the model has one of ``lora_target_modules``' names.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    from siglip_flowers.model.pooling_adapter import PoolingAttention

    assert options.lora_r is not None
    words = options.adapted_modules
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    targets = [
        target
        for target in find_targets(model, words)
        if any(name.startswith(f"{target}.") for name in trained)
    ]
    if not targets:
        raise InputError(
            f"--lora_target_modules {' '.join(words)} names no module of this model. Remove the "
            "option to adapt all of them."
        )
    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.adapter_alpha,
        # DoRA passes more than inputs through the first factor, so that peft's dropout stays there.
        lora_dropout=options.lora_dropout if options.use_dora else 0.0,
        use_dora=options.use_dora,
        target_modules=targets,
        base_model_name_or_path=options.model_name_or_path,
    )
    config._register_custom_module({nn.MultiheadAttention: PoolingAttention})
    inject_adapter_in_model(config, model, ADAPTER_NAME)
    for module in model.modules():
        if isinstance(module, PoolingAttention):
            module.freeze_output()
        elif isinstance(module, LoraLayer) and options.lora_dropout and not options.use_dora:
            factor: Any = module.lora_A[ADAPTER_NAME]
            module.lora_A[ADAPTER_NAME] = DroppedLinear(factor, options.lora_dropout)
            # It would be saved in float32, whatever the precision of the pass.
            module.cast_input_dtype_enabled = False
    config.lora_dropout = options.lora_dropout
    for name, parameter in model.named_parameters():
        if name in trained and name.startswith(("classifier.", "logit_")):
            parameter.requires_grad_(True)


def has_adapters(model: Any) -> bool:
    """Return whether :func:`add_adapters` was called on the model."""
    return hasattr(model, "peft_config")


def select_trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters by name, of a model with adapters these and the head."""
    named = model.named_parameters()
    return {name: value.detach() for name, value in named if value.requires_grad}


def merge_adapters(model: Any) -> Any:
    """Return a copy of the model with the adapters merged into its weights."""
    from peft.tuners.lora import LoraLayer

    from siglip_flowers.model.pooling_adapter import PoolingAttention

    merged = copy.deepcopy(model)
    adapted: dict[str, Any] = {
        name: part for name, part in merged.named_modules() if isinstance(part, LoraLayer)
    }
    with torch.no_grad():
        for name, module in adapted.items():
            parent, _, attribute = name.rpartition(".")
            if isinstance(adapted.get(parent.removesuffix(".base_layer")), PoolingAttention):
                continue  # its output projection, which is merged with it
            if isinstance(module, PoolingAttention):
                base = module.unload_and_optionally_merge_module(True, False, None)
            else:
                module.merge()
                base = module.get_base_layer()
            setattr(merged.get_submodule(parent), attribute, base)
    del merged.peft_config
    return merged


def fold_model(model: Any) -> SiglipClassifier:
    """Return an ordinary classifier with the same logits, adapters merged and head folded."""
    folded: SiglipClassifier = (merge_adapters(model) if has_adapters(model) else model).fold()
    return folded


def save_adapter(model: Any, classifier: SiglipClassifier, directory: Path) -> None:
    """Write adapter and head in the format of peft.

    ``PeftModel.from_pretrained(base, directory)`` adds them to the classifier that the run started
    from. For a two-tower model only those of the vision tower are written: those of the text tower
    are part of the head.

    Args:
        model: The model with adapters.
        classifier: The result of :func:`fold_model`, for its head.
        directory: An existing directory.
    """
    from peft import get_peft_model_state_dict

    config = model.peft_config[ADAPTER_NAME]
    adapter = get_peft_model_state_dict(
        model, adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    state = {name: value for name, value in adapter.items() if name.startswith("vision_model.")}
    state |= {
        f"classifier.{name}": value for name, value in classifier.classifier.state_dict().items()
    }
    tensors = {
        f"base_model.model.{name}": value.detach().cpu().contiguous()
        for name, value in state.items()
    }
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    targets = [name for name in config.target_modules if not name.startswith("text_model.")]
    dataclasses.replace(
        config, target_modules=targets, modules_to_save=["classifier"], inference_mode=True
    ).save_pretrained(str(directory))
