"""Train from the top down: a block takes part only from a certain step on."""

from torch import nn

from siglip_flowers.model.freezing import locate_parameters


class GradualUnfreezing:
    """Holds the lower blocks of each tower still at the beginning of the training.

    The classification head trains from the first step. The trained blocks of a tower (last norm
    and pooling; encoder layers from the last to the first; embeddings) join one by one at equal
    distances, so that the lowest joins after ``share`` of all steps. Without a classification head
    (contrastive) a tower's top block trains from the first step.

    A block that is held keeps ``requires_grad``, since DistributedDataParallel expects the same
    gradients in every step; they are computed, averaged over the processes and then dropped before
    the norm is clipped. An optimizer leaves a parameter without gradient alone: it moves neither by
    momentum nor by weight decay, and has no state before its block joins. Nothing needs saving: who
    is held follows from the number of the step.

    Source: Howard and Ruder 2018, "Universal language model fine-tuning for text classification"
    (ULMFiT), section 3.3, with equal distances in the place of epochs.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        places = locate_parameters(model)
        trained = {
            name: places[name]
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and places[name].part in ("vision", "text")
        }
        has_head = any(place.part == "head" for place in places.values())
        self.starts: dict[str, float] = {}
        for part in {place.part for place in trained.values()}:
            heights = sorted({place.height for place in trained.values() if place.part == part})
            joined = 0 if has_head else -1
            last = max(1, len(heights) + joined)
            for name, place in trained.items():
                if place.part == part:
                    rank = heights.index(place.height) + 1 + joined
                    self.starts[name] = share * rank / last

    def is_held(self, name: str, step: int, max_steps: int) -> bool:
        """Return whether the parameter of this name stands still in the step, counted from 0."""
        return step < self.starts.get(name, 0.0) * max_steps

    def drop_gradients(self, model: nn.Module, step: int, max_steps: int) -> None:
        """Take the gradients away from the parameters that are held in this step."""
        for name, parameter in model.named_parameters():
            if self.is_held(name, step, max_steps):
                parameter.grad = None
