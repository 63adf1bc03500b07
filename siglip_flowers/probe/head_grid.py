"""Many classification heads on the same features, trained side by side as if each were alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siglip_flowers.model.losses import class_logits


class HeadGrid(nn.Module):
    """K heads of C classes, each on one of P poolings of D features.

    Parameters hold all heads of a pooling: ``map_weight`` (K_map, C, D), ``map_bias`` (K_map, C)
    and so on; heads are numbered pooling by pooling. Beside each parameter lies a buffer with what
    is to be kept of it, ``kept_map_weight``, and for each head ``kept_value`` and ``kept_step``
    (K,), so that checkpoints carry the best epoch of every head.

    Args:
        starts: By pooling, the state of the head that every setting starts from, as the
            ``classifier`` of a ``SiglipClassifier`` has it: ``weight`` (C, D) and ``bias`` (C,),
            or ``class_embeddings`` (C, D), ``logit_scale`` and ``logit_bias``.
        counts: By pooling, in the same order, the number of heads.
        normalize_features: Divide features by their L2 norm before a linear head.
    """

    kept_value: Tensor
    kept_step: Tensor

    def __init__(
        self,
        starts: Mapping[str, Mapping[str, Tensor]],
        counts: Mapping[str, int],
        *,
        normalize_features: bool = False,
    ) -> None:
        super().__init__()
        self.counts = dict(counts)
        self.normalize_features = normalize_features
        self.part_names = list(next(iter(starts.values())))
        self.cosine = "class_embeddings" in self.part_names
        for pooling, count in counts.items():
            for part in self.part_names:
                value = starts[pooling][part].detach().float()
                stacked = value.expand(count, *value.shape).clone()
                self.register_parameter(f"{pooling}_{part}", nn.Parameter(stacked))
                self.register_buffer(f"kept_{pooling}_{part}", stacked.clone())
        total = sum(counts.values())
        self.register_buffer("kept_value", torch.full((total,), float("nan")))
        self.register_buffer("kept_step", torch.zeros(total, dtype=torch.int64))

    def __len__(self) -> int:
        return sum(self.counts.values())

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Map features (B, D) of each pooling to the logits of all heads (B, K, C)."""
        return torch.cat(
            [self._classify(pooling, features[pooling]) for pooling in self.counts], dim=1
        )

    def _classify(self, pooling: str, features: Tensor) -> Tensor:
        # All heads of a pooling see the same features: one matrix product serves them all.
        if self.cosine:
            classes = getattr(self, f"{pooling}_class_embeddings")
            count = len(classes)
            zero = features.new_zeros(1)
            cosines = class_logits(features, classes.flatten(0, 1), zero, zero)
            cosines = cosines.unflatten(1, (count, -1))
            scale = getattr(self, f"{pooling}_logit_scale").exp().view(1, count, 1)
            return scale * cosines + getattr(self, f"{pooling}_logit_bias").view(1, count, 1)
        weight, bias = getattr(self, f"{pooling}_weight"), getattr(self, f"{pooling}_bias")
        if self.normalize_features:
            features = F.normalize(features, dim=-1)
        logits = F.linear(features, weight.flatten(0, 1), bias.flatten())
        return logits.unflatten(1, (len(weight), -1))

    def iterate_parts(self) -> Iterator[tuple[slice, str, Tensor, Tensor]]:
        """Yield the numbers of the heads, the part's name, its parameter and its kept buffer."""
        start = 0
        for pooling, count in self.counts.items():
            heads = slice(start, start + count)
            for part in self.part_names:
                name = f"{pooling}_{part}"
                yield heads, part, getattr(self, name), getattr(self, f"kept_{name}")
            start += count

    @torch.no_grad()
    def load_heads(self, heads: Sequence[Mapping[str, Any]]) -> None:
        """Set the heads, in order, to states such as the constructor's ``starts``."""
        for numbers, part, parameter, _ in self.iterate_parts():
            values = [torch.as_tensor(head[part]) for head in heads[numbers]]
            parameter.copy_(torch.stack(values))

    @torch.no_grad()
    def keep(self, values: Tensor, step: int, *, greater: bool = True) -> None:
        """Keep the heads whose value is better than what was kept of them, or is the first.

        ``values`` (K,); one that is not a number is never better.
        """
        values = values.to(self.kept_value)
        better = values > self.kept_value if greater else values < self.kept_value
        self._keep_where(better | (self.kept_value.isnan() & ~values.isnan()), values, step)

    @torch.no_grad()
    def keep_all(self, values: Tensor, step: int) -> None:
        """Keep every head as it is."""
        values = values.to(self.kept_value)
        self._keep_where(torch.ones_like(values, dtype=torch.bool), values, step)

    def _keep_where(self, better: Tensor, values: Tensor, step: int) -> None:
        for heads, _, parameter, kept in self.iterate_parts():
            mask = better[heads].view(-1, *[1] * (parameter.ndim - 1))
            kept.copy_(torch.where(mask, parameter, kept))
        self.kept_value.copy_(torch.where(better, values, self.kept_value))
        self.kept_step.copy_(torch.where(better, step, self.kept_step))

    @torch.no_grad()
    def get_kept(self, number: int) -> dict[str, Tensor]:
        """Return a copy of what was kept of one head, as the state of a ``classifier``."""
        found = {}
        for heads, part, _, kept in self.iterate_parts():
            if heads.start <= number < heads.stop:
                found[part] = kept[number - heads.start].detach().cpu().clone()
        return found

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Clip the gradient of each head to ``max_norm``, as if it were alone.

        Returns the norms before clipping, (K,).
        """
        parts = [(heads, parameter.grad) for heads, _, parameter, _ in self.iterate_parts()]
        squares = self.kept_value.new_zeros(len(self))
        for heads, gradient in parts:
            assert gradient is not None
            squares[heads] += gradient.reshape(len(gradient), -1).square().sum(dim=1)
        norms = squares.sqrt()
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for heads, gradient in parts:
            assert gradient is not None
            gradient.mul_(factors[heads].view(-1, *[1] * (gradient.ndim - 1)))
        return norms


def cross_entropy_of_heads(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy of each head, averaged over images.

    ``logits`` (B, K, C), ``labels`` (B,) ids, ``class_weights`` (C,). Returns (K,) float32, each
    what :func:`~siglip_flowers.model.losses.cross_entropy_loss` gives for that head.
    """
    batch, heads, _ = logits.shape
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        labels.repeat_interleave(heads),
        weight=class_weights,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.view(batch, heads).sum(dim=0) / batch


def sigmoid_loss_of_heads(logits: Tensor, labels: Tensor) -> Tensor:
    """Pairwise sigmoid loss of each head: (K,) float32; arguments as above."""
    targets = F.one_hot(labels, logits.shape[2]).to(torch.float32)[:, None].expand(logits.shape)
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.sum(dim=(0, 2)) / len(logits)


class HeadGridAdamW(torch.optim.Optimizer):
    """AdamW whose learning rate and weight decay differ from slice to slice of a parameter.

    What ``torch.optim.AdamW`` does with each slice alone, in a handful of operations for all. A
    group's ``lr`` is what schedules change; slice i steps with ``lr * lr_factors[i]`` and decays
    by ``weight_decays[i]``.

    Args:
        groups: Each with ``params``, whose first axis counts heads, ``lr_factors`` and
            ``weight_decays``, lists of a number a head.
        lr: Learning rate that the factors multiply.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.

    Source: Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        shape = (-1, *[1] * (parameter.ndim - 1))
        rates = torch.tensor(group["lr_factors"], dtype=torch.float64).view(shape) * group["lr"]
        if any(group["weight_decays"]):
            decays = torch.tensor(group["weight_decays"], dtype=torch.float64).view(shape)
            parameter.mul_((1 - rates * decays).float().to(parameter.device))
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (1 - beta2 ** state["step"]) ** 0.5
        denominator = (square.sqrt() / root).add_(group["eps"])
        steps = (rates / (1 - beta1 ** state["step"])).float().to(parameter.device)
        parameter.addcmul_(mean.div(denominator), -steps)
