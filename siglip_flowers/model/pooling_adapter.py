"""peft's LoRA for the attention of the pooling head, without its rounding errors."""

from typing import Any

from peft.tuners.lora import layer
from torch import Tensor
from torch.func import functional_call


class PoolingAttention(layer.MultiheadAttention):
    """LoRA on the fused query, key and value projection of ``nn.MultiheadAttention``.

    The parent adds the adapter to the frozen weights before each forward pass and subtracts it
    afterwards, which changes them by a rounding error every time: a run could not be resumed
    exactly from checkpoints without them. Here the sum exists only within the pass. Names and files
    are those of the parent; as there, the adapter acts on weights, so ``lora_dropout`` does not
    apply.

    The parent's adapter on the output projection stays at its start, which is zero: peft (0.21)
    applies it twice (huggingface/peft#3774), so a file would mean another model in a fixed version.
    """

    def freeze_output(self) -> None:
        """Freeze the adapter on the output projection."""
        base: Any = self.get_base_layer()
        base.out_proj.requires_grad_(False)

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See ``nn.MultiheadAttention``."""
        if self.disable_adapters or self.merged:
            return super().forward(query, *args, **kwargs)
        base: Any = self.get_base_layer()
        weight = base.in_proj_weight
        for name in self.active_adapters:
            if name in self.lora_A:
                weight = weight + self.get_delta_weight(name)
        return functional_call(base, {"in_proj_weight": weight}, (query, *args), kwargs)

    def _restore_weights(self) -> None:
        # The parent replaces its parameter objects whenever modules are listed, to repair the
        # effects of its forward pass; here there are none.
        pass
