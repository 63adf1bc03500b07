"""peft's LoRA for the attention of the pooling head, without its rounding errors."""

from typing import Any

from peft.tuners.lora import layer
from torch import Tensor
from torch.func import functional_call


class PoolingAttention(layer.MultiheadAttention):
    """LoRA on the fused query, key and value projection of ``nn.MultiheadAttention``.

    The parent adds the adapter to the frozen weights before each forward pass and subtracts it
    afterwards, which moves them by a rounding error every time: checkpoints without them could not
    be resumed exactly. Here the sum lives only within the pass. Names and files are the parent's,
    and as there the adapter acts on weights, where ``lora_dropout`` has no place.

    The parent's adapter on the output projection is kept at its start, which is nothing at all:
    peft (0.21) counts it twice (huggingface/peft#3774), and a file of one version would be another
    model in the next.
    """

    def freeze_output(self) -> None:
        """Keep the adapter on the output projection from training."""
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
        # The parent makes new parameter objects of its weights whenever modules are listed, to
        # repair what its forward pass does; nothing is to be repaired here.
        pass
