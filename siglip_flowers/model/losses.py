"""The three training losses: softmax, pairwise sigmoid, image-text sigmoid over all ranks."""

from operator import itemgetter
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Texts per block of logits, so that their memory is linear in the local batch.
_TEXT_BLOCK = 1024


def cross_entropy_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Softmax cross-entropy of each image.

    ``logits`` (B, C); ``labels`` (B,) integer ids or (B, C) target probabilities. Returns the mean
    over images, a scalar; with ``reduction="none"`` the loss of each, (B,). At least float32.

    Raises ValueError if the shape or type of ``labels`` does not fit.
    """
    _check_labels(logits, labels)
    logits = _at_least_float32(logits)
    if labels.dim() == 2:
        labels = labels.to(logits.dtype)
    return F.cross_entropy(logits, labels, reduction=reduction)


def sigmoid_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Every (image, class) pair as a binary problem: summed over the classes of each image.

    ``logits`` (B, C); ``labels`` (B,) integer ids or (B, C) targets in [0, 1] (binary
    cross-entropy, equal to -log sigmoid(z * logit) for targets 0 and 1). Returns the mean over
    images, a scalar; with ``reduction="none"`` the loss of each, (B,). At least float32.

    Raises ValueError if the shape or type of ``labels`` does not fit.
    Source: Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", section 3.2.
    """
    _check_labels(logits, labels)
    logits = _at_least_float32(logits)
    targets = F.one_hot(labels.long(), logits.shape[1]) if labels.dim() == 1 else labels
    pairs = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    losses = pairs.sum(dim=1)
    return losses if reduction == "none" else losses.mean()


def class_logits(
    image_embeddings: Tensor,
    class_embeddings: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
) -> Tensor:
    """Score images against classes: exp(logit_scale) * cosine, + logit_bias if there is one.

    ``image_embeddings`` (B, D) and ``class_embeddings`` (C, D) of any length, normalized here;
    ``logit_scale`` is the logarithm of the scale; it and ``logit_bias`` have one element.
    Returns (B, C), at least float32 also under autocast.

    Source: Zhai et al. 2023, section 3.2.
    """
    with torch.autocast(device_type=image_embeddings.device.type, enabled=False):
        bias = torch.zeros_like(logit_scale) if logit_bias is None else logit_bias
        images, classes, scale, bias = _in_common_precision(
            image_embeddings, class_embeddings, logit_scale, bias
        )
        cosine = F.normalize(images, dim=-1) @ F.normalize(classes, dim=-1).T
        return scale.exp().reshape(()) * cosine + bias.reshape(())


def contrastive_sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    labels: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    group: Any = None,
) -> Tensor:
    """Sigmoid loss of this rank's images against the texts of all ranks.

    ``image_embeddings`` and ``text_embeddings`` (B, D), row i of both belonging to the class
    ``labels[i]`` (B,) integer; ``logit_scale`` (a logarithm) and ``logit_bias`` one element each;
    ``group`` the process group, default all ranks. Pairs of equal label are positives, also across
    ranks. Returns a scalar, at least float32 also under autocast.

    With N images on W ranks in all, each rank returns W / N times the sum over its own pairs, so
    the mean over ranks, of the loss as of the gradients under DistributedDataParallel, is exactly
    what one process gets for the whole batch. Local batches may differ in size. Text chunks travel
    around a ring together with their gradients: memory is linear in the local batch, and all
    communication happens in this call, none in backward. So every rank of the group has to make
    the call and multiply the loss by the same factor before backward.

    Raises ValueError for shapes that do not fit; on all ranks for differences between them (widths,
    an empty batch, a tower that trains on some ranks only).
    Source: Zhai et al. 2023, section 3.3 (chunked loss); positives of the same class: ours.
    """
    if image_embeddings.dim() != 2 or image_embeddings.shape != text_embeddings.shape:
        raise ValueError(
            f"images {tuple(image_embeddings.shape)} and texts {tuple(text_embeddings.shape)} "
            "must both be (batch, width), one text per image"
        )
    if labels.shape != image_embeddings.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels must be {image_embeddings.shape[0]} integers, one per image, "
            f"not {tuple(labels.shape)} of {labels.dtype}"
        )
    with torch.autocast(device_type=image_embeddings.device.type, enabled=False):
        images, texts, scale, bias = _in_common_precision(
            image_embeddings, text_embeddings, logit_scale, logit_bias
        )
        trained = [t.requires_grad and torch.is_grad_enabled() for t in (images, texts)]
        ring = _Ring(group, images, trained)
        return _RingSigmoidLoss.apply(
            F.normalize(images, dim=-1),
            F.normalize(texts, dim=-1),
            labels.long(),
            scale,
            bias,
            ring,
            trained[1],
            torch.is_grad_enabled(),
        )


class _Ring:
    """The ranks of a group, each of which passes tensors to the next one."""

    def __init__(self, group: Any, images: Tensor, trained: list[bool]) -> None:
        """Gather the batch size of every rank and check that the ranks fit together.

        ``images`` (B, D) of this rank; ``trained``: whether images and texts need a gradient.
        Raises ValueError on all ranks, so that none waits for another.
        """
        self.rank, self.size = 0, 1
        facts = [[*images.shape, *map(int, trained), int(images.dtype == torch.float64)]]
        if dist.is_available() and dist.is_initialized():
            self.group: Any = dist.group.WORLD if group is None else group
            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
            if self.rank < 0:
                raise ValueError("this process is not in the process group given for the loss")
        if self.size > 1:
            own = torch.tensor(facts[0], device=images.device)
            gathered = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(gathered, own, group=group)
            facts = torch.stack(gathered).tolist()
        self.batch_sizes = [fact[0] for fact in facts]
        if min(self.batch_sizes) == 0:
            raise ValueError(f"every rank needs at least one image, not {self.batch_sizes}")
        if any(fact[1:] != facts[0][1:] for fact in facts):
            raise ValueError(
                "embedding width, precision and trained towers must be the same on all ranks, "
                f"not {facts} (batch, width, images trained, texts trained, float64)"
            )

    def pass_to_next(self, tensors: list[Tensor], rows: int) -> list[Tensor]:
        """Send ``tensors`` to the next rank; receive as many, with ``rows`` rows, from the last."""
        after = dist.get_global_rank(self.group, (self.rank + 1) % self.size)
        before = dist.get_global_rank(self.group, (self.rank - 1) % self.size)
        received = [t.new_empty((rows, *t.shape[1:])) for t in tensors]
        operations = [
            dist.P2POp(dist.isend, t.contiguous(), after, self.group, tag)
            for tag, t in enumerate(tensors)
        ] + [dist.P2POp(dist.irecv, t, before, self.group, tag) for tag, t in enumerate(received)]
        # Issued as one batch and then awaited, so that no rank's send blocks its receive.
        for request in dist.batch_isend_irecv(operations):
            request.wait()
        return received


class _RingSigmoidLoss(torch.autograd.Function):
    """Loss and gradients chunk by chunk in forward, so that no logits are kept.

    With logit = s * u.v + b and target t, d loss / d logit = sigmoid(logit) - t =: g, so the
    gradients of u, v, log s and b are sums of s * g * v, s * g * u, g * (logit - b) and g.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        labels: Tensor,
        log_scale: Tensor,
        bias: Tensor,
        ring: _Ring,
        texts_trained: bool,
        grad_wanted: bool,
    ) -> Tensor:
        weight = ring.size / sum(ring.batch_sizes)
        scale = log_scale.exp().reshape(())
        total = images.new_zeros(())
        image_grad = torch.zeros_like(images)
        scale_grad, bias_grad = images.new_zeros(()), images.new_zeros(())
        chunk, chunk_labels, chunk_grad = texts, labels, torch.zeros_like(texts)

        for step in range(ring.size):
            for start in range(0, len(chunk), _TEXT_BLOCK):
                rows = slice(start, start + _TEXT_BLOCK)
                scaled_cosine = scale * (images @ chunk[rows].T)  # (B, block)
                logits = scaled_cosine + bias.reshape(())
                targets = (labels[:, None] == chunk_labels[rows]).to(logits.dtype)
                total += F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
                if not grad_wanted:
                    continue
                slope = (logits.sigmoid() - targets) * weight
                image_grad += scale * (slope @ chunk[rows])
                if texts_trained:
                    chunk_grad[rows] += scale * (slope.T @ images)
                scale_grad += (slope * scaled_cosine).sum()
                bias_grad += slope.sum()
            if ring.size == 1:
                break
            # After the last step only the gradient returns home; frozen texts have none.
            last = step == ring.size - 1
            travelling = [] if last else [chunk, chunk_labels]
            if texts_trained:
                travelling.append(chunk_grad)
            if not travelling:
                break
            source = (ring.rank - step - 1) % ring.size
            received = ring.pass_to_next(travelling, ring.batch_sizes[source])
            if texts_trained:
                chunk_grad = received.pop()
            if not last:
                chunk, chunk_labels = received

        ctx.save_for_backward(
            image_grad,
            chunk_grad,
            scale_grad.reshape(log_scale.shape),
            bias_grad.reshape(bias.shape),
        )
        return total * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, scale, bias = (
            factor * grad if needed else None
            for grad, needed in zip(
                ctx.saved_tensors, itemgetter(0, 1, 3, 4)(ctx.needs_input_grad), strict=True
            )
        )
        return images, texts, None, scale, bias, None, None, None


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless ``labels`` are (B,) ids or (B, C) targets for (B, C) logits."""
    ids = labels.shape == logits.shape[:1] and not labels.is_floating_point()
    targets = labels.shape == logits.shape and labels.is_floating_point()
    if logits.dim() != 2 or not (ids or targets):
        raise ValueError(
            f"for logits {tuple(logits.shape)} labels must be integers (batch,) or "
            f"floating-point targets (batch, classes), not {tuple(labels.shape)} of {labels.dtype}"
        )


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _in_common_precision(*tensors: Tensor) -> list[Tensor]:
    """Convert all to one dtype: float64 if any of them has it, otherwise float32."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return [tensor.to(torch.float64 if wide else torch.float32) for tensor in tensors]
