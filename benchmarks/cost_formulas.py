"""What a training step needs on paper: operations and bytes in memory, by arithmetic.

Nothing here is assumed: ``tests/test_cost_model.py`` holds the counts against torch's own counters,
``benchmarks.cost_model_check`` against measured processes.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import SiglipVisionConfig

from benchmarks.flops import count_forward_flops
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig

CLASSES = 102
FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
# AdamW keeps two moments of each trained parameter, in float32 as the parameter itself.
MOMENTS = 2
# torch's default.
DDP_BUCKET_BYTES = 25 * 2**20
STRATEGIES = ("ddp", "zero2", "fsdp2")

# Width, layers, heads, width of the MLP, side in pixels, side of a patch: as published.
SHAPES = {
    "B/16-224": (768, 12, 12, 3072, 224, 16),
    "L/16-256": (1024, 24, 16, 4096, 256, 16),
    "L/16-384": (1024, 24, 16, 4096, 384, 16),
    "so400m/14-224": (1152, 27, 16, 4304, 224, 14),
    "so400m/14-384": (1152, 27, 16, 4304, 384, 14),
    "g-opt/16-256": (1536, 40, 16, 6144, 256, 16),
    "g-opt/16-384": (1536, 40, 16, 6144, 384, 16),
}


def make_config(name: str, layers: int | None = None) -> SiglipVisionConfig:
    """Return a published shape, with another depth where that is given."""
    width, depth, heads, inner, image_size, patch_size = SHAPES[name]
    return SiglipVisionConfig(
        hidden_size=width,
        num_hidden_layers=depth if layers is None else layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        image_size=image_size,
        patch_size=patch_size,
    )


def count_tokens(config: SiglipVisionConfig) -> int:
    """Return the patches of an image."""
    assert isinstance(config.image_size, int)
    assert isinstance(config.patch_size, int)
    return (config.image_size // config.patch_size) ** 2


def build_on_meta(config: SiglipVisionConfig, num_labels: int = CLASSES) -> SiglipClassifier:
    """Build the project's classifier without memory for its weights."""
    with torch.device("meta"):
        return SiglipClassifier(
            SiglipClassifierConfig(
                vision_config=config, id2label={n: str(n) for n in range(num_labels)}
            )
        )


# Operations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flops:
    """Operations of matrix products for one image."""

    forward: int
    backward: int

    @property
    def step(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def count_step_flops(
    config: SiglipVisionConfig,
    *,
    checkpointing: bool = False,
    trained: str = "all",
    lora_r: int = 16,
    num_labels: int = CLASSES,
) -> Flops:
    """Count the products of one training step for one image.

    Args:
        config: The tower, with the attention-pooling head.
        checkpointing: Whether the encoder layers are computed again in the backward pass.
        trained: all; head (the classifier); lora (adapters as ``configs/lora.yaml`` has them).
        lora_r: Rank of the adapters.
        num_labels: Classes.
    """
    forward = count_forward_flops(config, num_labels)
    width, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = count_tokens(config)
    classifier = 2 * width * num_labels
    patches = count_forward_flops(_without_layers(config), num_labels, map_head=False) - classifier
    layer = (forward - count_forward_flops(_without_layers(config), num_labels)) // depth
    # torch stops computing a layer anew once it has the input of its last product.
    again = depth * (layer - tokens * 2 * width * inner) if checkpointing else 0
    if trained == "head":
        # The features need no gradient: nothing but that of the classifier's weight is computed.
        return Flops(forward, classifier)
    if trained == "all":
        # Pixels need no gradient.
        return Flops(forward, 2 * forward - patches + again)
    projections, attention = 8 * width**2, 4 * tokens * width
    mlp = 4 * width * inner
    adapters = tokens * 2 * lora_r * (8 * width + 2 * (width + inner))
    head_adapters = 2 * lora_r * 2 * (width + inner)
    # Frozen weights get no gradient; the products of attention have two inputs that do. Below the
    # first adapters nothing needs one. The pooling head's fused projection is adapted as a weight,
    # whose gradient is computed whole.
    backward_layer = tokens * (projections + mlp + 2 * attention) + 2 * adapters
    first = tokens * 3 * (2 * width**2 + 2 * lora_r * width)
    key_value = tokens * 4 * width**2
    head = 2 * key_value + 2 * attention + mlp + 2 * head_adapters + 4 * width**2
    extra = depth * adapters + head_adapters
    backward = depth * backward_layer - first + head + 2 * classifier
    if checkpointing:
        backward += again + depth * (adapters - tokens * 2 * lora_r * width)
    return Flops(forward + extra, backward)


def _without_layers(config: SiglipVisionConfig) -> SiglipVisionConfig:
    bare = copy.deepcopy(config)
    bare.num_hidden_layers = 0
    return bare


# Memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedBytes:
    """What autograd keeps of one image between forward and backward.

    Attributes:
        pixels: The normalized image.
        layer: One encoder layer without checkpointing.
        layer_input: The same with checkpointing.
        head: Last norm, attention pooling, classifier and loss.
        transient: Gradients in flight while the last encoder layer is passed backwards.
    """

    pixels: int
    layer: int
    layer_input: int
    head: int
    transient: int

    def total(self, layers: int, checkpointing: bool) -> int:
        """Return the sum over the model."""
        return (
            self.pixels + layers * (self.layer_input if checkpointing else self.layer) + self.head
        )

    def peak(self, layers: int, checkpointing: bool) -> int:
        """Return the most that is alive: saved, gradients in flight and the layer computed anew.

        The pooling head is passed first, and its share is free when the gradients appear.
        """
        saved = self.total(layers, checkpointing)
        again = self.layer if checkpointing else 0
        return saved + max(0, self.transient + again - self.head)


def count_saved_bytes(
    config: SiglipVisionConfig,
    *,
    bf16: bool,
    attention: str = "sdpa",
    num_labels: int = CLASSES,
) -> SavedBytes:
    """Count the saved tensors of one image, in float32 or under bfloat16 autocast.

    The residual stream and the inputs of the norms stay in float32 under autocast; queries, keys
    and values are projected from three bfloat16 copies of one norm's output.
    """
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    tokens = count_tokens(config)
    side = config.image_size
    assert isinstance(side, int)
    e = BFLOAT16_BYTES if bf16 else FLOAT32_BYTES
    norm = FLOAT32_BYTES * width + 2 * FLOAT32_BYTES  # its input, mean and deviation
    copies = 3 if bf16 else 1
    # norm, its output, q k v, attention's output; norm, its output, before and after the gelu
    token = norm + copies * e * width + 3 * e * width + e * width
    token += norm + e * width + 2 * e * inner
    if attention == "eager":
        # Softmax is computed in float32 and, under autocast, copied.
        token += heads * tokens * (FLOAT32_BYTES + (e if bf16 else 0))
    else:
        token += FLOAT32_BYTES * heads
    pooled = 6 * e * width + 2 * e * inner + e * heads * tokens + 2 * e
    head = tokens * (norm + 3 * e * width) + pooled + FLOAT32_BYTES * num_labels + 8
    return SavedBytes(
        pixels=e * config.num_channels * side**2,
        layer=tokens * token,
        layer_input=tokens * FLOAT32_BYTES * width,
        head=head,
        transient=tokens * (FLOAT32_BYTES * width + 2 * e * inner),
    )


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: all, the trained, those in one encoder layer, those in products."""

    total: int
    trained: int
    layer: int
    products: int


def count_parameters(config: SiglipVisionConfig, num_labels: int = CLASSES) -> Parameters:
    """Count the parameters of the built model."""
    model = build_on_meta(config, num_labels)
    total = sum(parameter.numel() for parameter in model.parameters())
    layer = sum(
        parameter.numel() for parameter in model.vision_model.encoder.layers[0].parameters()
    )
    products = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and not name.endswith(("position_embedding.weight", "probe"))
    )
    return Parameters(total, total, layer, products)


def count_shard_elements(shapes: Sequence[Sequence[int]], ranks: int, rank: int) -> int:
    """Return how many elements one rank of FSDP2 holds: rows are dealt out as ``torch.chunk`` does.

    Each parameter is cut along its first axis into pieces of ceil(rows / ranks), so that of one
    with fewer rows than ranks the last ranks hold nothing.
    """
    held = 0
    for shape in shapes:
        rows = shape[0] if shape else 1
        piece = math.ceil(rows / ranks)
        mine = max(0, min(rows, (rank + 1) * piece) - rank * piece)
        held += mine * math.prod(shape[1:])
    return held


def static_bytes(parameters: Parameters, strategy: str, ranks: int) -> tuple[float, float]:
    """Return bytes on one GPU that live all the time, and gradients that grow in the backward pass.

    ``ddp`` with one rank is a plain process. DDP's buckets are a second copy of the gradients.
    ``zero2`` keeps bfloat16 weights whole and shards float32 weights, moments and gradients;
    ``fsdp2`` shards everything, and two layers at a time are whole, in bfloat16.
    """
    whole, trained = FLOAT32_BYTES * parameters.total, FLOAT32_BYTES * parameters.trained
    if strategy == "ddp" or ranks == 1:
        buckets = trained if ranks > 1 else 0
        return whole + MOMENTS * trained + buckets, trained
    if strategy == "zero2":
        low = BFLOAT16_BYTES * parameters.total + 2 * DDP_BUCKET_BYTES
        return low + (1 + MOMENTS) * trained / ranks, trained / ranks
    gathered = 2 * BFLOAT16_BYTES * parameters.layer
    return (whole + MOMENTS * trained) / ranks + gathered, trained / ranks + gathered / 2


def peak_bytes(
    config: SiglipVisionConfig,
    parameters: Parameters,
    batch: int,
    *,
    bf16: bool = True,
    attention: str = "sdpa",
    checkpointing: bool = False,
    strategy: str = "ddp",
    ranks: int = 1,
) -> float:
    """Return the highest number of bytes of tensors that one GPU holds in a step.

    The highest of three moments: early in the backward pass all activations live and no gradient
    does; in the first encoder layer one layer's activations and nearly all gradients; at the
    optimizer's step all gradients. Gradients that are accumulated live all the time instead.
    """
    lasting, gradients = static_bytes(parameters, strategy, ranks)
    saved = count_saved_bytes(config, bf16=bf16, attention=attention)
    activations = batch * saved.peak(config.num_hidden_layers, checkpointing)
    first_layer = batch * (saved.pixels + saved.layer + saved.transient)
    later_gradients = gradients * (1 - parameters.layer / parameters.total)
    casts = 0
    if bf16 and (strategy == "ddp" or ranks == 1):
        # Autocast's copies of weights are saved for the backward pass, layers computed anew aside.
        anew = config.num_hidden_layers * parameters.layer if checkpointing else 0
        casts = BFLOAT16_BYTES * (parameters.products - anew)
    return lasting + max(casts + activations, later_gradients + first_layer, gradients)


def largest_batch(
    usable_bytes: float,
    config: SiglipVisionConfig,
    parameters: Parameters,
    *,
    checkpointing: bool = False,
    strategy: str = "ddp",
    ranks: int = 1,
) -> int:
    """Return the largest batch of one GPU under bfloat16 autocast; 0 if no image fits."""

    def fits(batch: int) -> bool:
        return usable_bytes >= peak_bytes(
            config,
            parameters,
            batch,
            checkpointing=checkpointing,
            strategy=strategy,
            ranks=ranks,
        )

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
