"""peft's LoRA for the attention of the pooling head, without its rounding errors."""

from typing import Any

from peft.tuners.lora import layer
from torch import Tensor
from torch.func import functional_call


class PoolingAttention(layer.MultiheadAttention):
    """LoRA on the fused input projection and the output projection of ``nn.MultiheadAttention``.

    The parent adds the adapter to the frozen weights before each forward pass and subtracts it
    afterwards, which moves them by a rounding error every time: checkpoints without them could not
    be resumed exactly. Here the sum lives only within the pass. Names and files are the parent's,
    and as there the adapter acts on weights, where ``lora_dropout`` has no place.
    """

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """See ``nn.MultiheadAttention``."""
        if self.disable_adapters or self.merged:
            return super().forward(query, *args, **kwargs)
        base = self.get_base_layer()
        projection = base.out_proj.get_base_layer()
        in_weight, out_weight = base.in_proj_weight, projection.weight
        for name in self.active_adapters:
            if name in self.lora_A:
                in_weight = in_weight + self.get_delta_weight(name)
                out_weight = out_weight + base.out_proj.get_delta_weight(name)
        weights = {"in_proj_weight": in_weight, "out_proj.base_layer.weight": out_weight}
        return functional_call(base, weights, (query, *args), kwargs)

    def _restore_weights(self) -> None:
        # The parent makes new parameter objects of its weights whenever modules are listed, to
        # repair what its forward pass does; nothing is to be repaired here.
        pass
