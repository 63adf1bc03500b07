"""FSDP2: what a run whose weights are spread over its processes needs besides accelerate."""

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from siglip_flowers.config.rules import uses_fsdp
from siglip_flowers.model.contrastive import ContrastiveSiglip


def allow_sharding_on_cpu() -> None:
    """Let accelerate shard in the processes of a CPU launch that requests FSDP.

    It has the name MULTI_CPU for them, under which it leaves FSDP out without a word; torch itself
    shards on any device. To be called before the ``Accelerator`` is made.
    """
    on_cpu = PartialState().distributed_type == DistributedType.MULTI_CPU
    if on_cpu and uses_fsdp():
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def shard_encoder_layers(plugin: Any, model: nn.Module) -> None:
    """Shard each encoder layer of the model apart.

    One configuration then serves fixed-resolution and NaFlex models, whose layers differ in name.
    """
    names = {type(module).__name__ for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(n for n in names if n.endswith("EncoderLayer"))


def to_full_tensor(value: Any) -> Any:
    """Return a sharded tensor whole, and anything else as it is; to be called by every process."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def gather_model(model: Any) -> Any:
    """Return a model of its own with whole weights; to be called by every process.

    A model that is not sharded is returned as it is.
    """
    if FSDPModule not in type(model).__mro__:
        return model
    # Sharding puts a class of torch's before the model's own.
    model_class: Any = next(
        kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule)
    )
    whole = model_class(model.config)
    if isinstance(whole, ContrastiveSiglip):
        whole.copy_prompts(model)
    shards = model.state_dict()
    for name, weight in whole.state_dict().items():
        weight.copy_(to_full_tensor(shards[name]))
    return whole.to(model.device).eval()
