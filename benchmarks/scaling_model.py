"""On paper: memory of a training step, and what it costs on 1 to 1024 GPUs.

    python -m benchmarks.scaling_model                               # the tables of docs/scaling.md
    python -m benchmarks.scaling_model --config configs/so400m.yaml  # the memory of one recipe

The first one also writes scaling_model.json: what head, LoRA and full fine-tuning take on one GPU.

Operations and bytes are counted exactly, and tests/test_scaling_model.py compares them with torch's
counters. Seconds follow from data sheets and the assumptions below; none was measured on a GPU.
"""

import argparse
import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import SiglipVisionConfig

from benchmarks.flops import count_forward_flops
from benchmarks.images import make_tower
from benchmarks.report import RESULTS, format_table
from siglip_flowers.base.files import write_json, write_text
from siglip_flowers.model.classifier import SiglipClassifier, SiglipClassifierConfig

COMMAND = "python -m benchmarks.scaling_model"
CLASSES = 102
FLOAT32, BFLOAT16 = 4, 2
DDP_BUCKET_BYTES = 25 * 2**20  # torch's default
# Width, layers, heads, width of the MLP, side of an image and of a patch: as published.
SHAPES = {
    "B/16-224": (768, 12, 12, 3072, 224, 16),
    "L/16-256": (1024, 24, 16, 4096, 256, 16),
    "L/16-384": (1024, 24, 16, 4096, 384, 16),
    "so400m/14-224": (1152, 27, 16, 4304, 224, 14),
    "so400m/14-384": (1152, 27, 16, 4304, 384, 14),
    "g-opt/16-256": (1536, 40, 16, 6144, 256, 16),
    "g-opt/16-384": (1536, 40, 16, 6144, 384, 16),
}
CHECKPOINTS = {
    "google/siglip2-base-patch16-224": "B/16-224",
    "google/siglip2-large-patch16-256": "L/16-256",
    "google/siglip2-so400m-patch14-384": "so400m/14-384",
}

# Assumed: H100 SXM, eight in a node with one card of 400 Gbit/s.
PEAK, UTILIZATION = 989.4e12, 0.4  # FLOP/s in bfloat16, and the share that products reach
MEMORY_RATE, LINK_RATE, NETWORK_RATE = 3.35e12, 450e9, 50e9  # bytes per second
WIRE_SHARE, OVERLAP = 0.8, 0.8  # of a link; of a pass during which data can travel
LINK_START, NETWORK_START, LAUNCH = 5e-6, 10e-6, 10e-6  # seconds per hop, per hop, per operation
OPERATIONS_PER_LAYER = 72  # forward and backward under autocast, counted
GPUS_PER_NODE = 8
RESERVED_BYTES, FRAGMENTATION = 2e9, 0.06  # CUDA and NCCL; share that the allocator loses
# AdamW reads parameter, gradient and moments and writes parameter and moments; the next forward
# pass reads the parameter again and writes its bfloat16 copy.
UPDATE_BYTES = (4 + 3 + 1) * FLOAT32 + BFLOAT16
WORLDS = [2**power for power in range(11)]
SCALED = ("B/16-224", "L/16-256", "so400m/14-384", "g-opt/16-256")


def make_config(name: str, layers: int | None = None) -> SiglipVisionConfig:
    """Return a published shape, with another depth if one is given."""
    width, depth, heads, inner, *sides = SHAPES[name]
    return make_tower(width, inner, depth if layers is None else layers, heads, *sides)


def build_on_meta(config: SiglipVisionConfig) -> SiglipClassifier:
    """Build the classifier without memory for its weights."""
    names = {number: str(number) for number in range(CLASSES)}
    with torch.device("meta"):
        return SiglipClassifier(SiglipClassifierConfig(vision_config=config, id2label=names))


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters, and bytes that autograd saves of one image under bfloat16 autocast.

    Attributes:
        total: All parameters; they are trained.
        layer: Those of one encoder layer.
        products: Those in matrix products, of which autocast makes bfloat16 copies.
        pixels: Bytes of the normalized image.
        saved_layer: Bytes of one encoder layer without checkpointing.
        saved_input: The same with checkpointing.
        saved_head: Bytes of last norm, attention pooling, classifier and loss.
        transient: Bytes of gradients in flight in the backward pass of the last encoder layer.
        depth: Number of encoder layers.
    """

    total: int
    layer: int
    products: int
    pixels: int
    saved_layer: int
    saved_input: int
    saved_head: int
    transient: int
    depth: int

    def saved(self, checkpointing: bool = False) -> int:
        """Return the bytes that are saved of one image."""
        layer = self.saved_input if checkpointing else self.saved_layer
        return self.pixels + self.depth * layer + self.saved_head


def count(config: SiglipVisionConfig) -> Counts:
    """Count parameters and saved bytes.

    The residual stream and the inputs of the norms stay in float32 under autocast; queries, keys
    and values are projected from three bfloat16 copies of one norm's output.
    """
    model = build_on_meta(config)
    parameters = dict(model.named_parameters())
    not_products = ("position_embedding.weight", "probe")
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    side: Any = config.image_size
    tokens = (side // config.patch_size) ** 2
    norm = FLOAT32 * width + 2 * FLOAT32  # its input, mean and deviation
    # norm, its output, q k v, attention's output; norm, its output, before and after the gelu
    token = 2 * norm + BFLOAT16 * (3 + 3 + 1 + 1) * width + 2 * BFLOAT16 * inner + FLOAT32 * heads
    pooled = BFLOAT16 * (6 * width + 2 * inner + heads * tokens + 2)
    return Counts(
        total=sum(p.numel() for p in parameters.values()),
        layer=sum(p.numel() for p in model.vision_model.encoder.layers[0].parameters()),
        products=sum(
            p.numel() for n, p in parameters.items() if p.ndim > 1 and not n.endswith(not_products)
        ),
        pixels=BFLOAT16 * config.num_channels * side**2,
        saved_layer=tokens * token,
        saved_input=tokens * FLOAT32 * width,
        saved_head=tokens * (norm + 3 * BFLOAT16 * width) + pooled + FLOAT32 * CLASSES + 8,
        transient=tokens * (FLOAT32 * width + 2 * BFLOAT16 * inner),
        depth=config.num_hidden_layers,
    )


def count_flops(config: SiglipVisionConfig, checkpointing: bool = False) -> tuple[int, int]:
    """Return the operations of forward pass and whole step for one image, all weights trained."""
    bare = copy.deepcopy(config)
    bare.num_hidden_layers = 0
    forward, depth = count_forward_flops(config, CLASSES), config.num_hidden_layers
    layer = (forward - count_forward_flops(bare, CLASSES)) // depth
    classifier = 2 * config.hidden_size * CLASSES
    patches = count_forward_flops(bare, CLASSES, map_head=False) - classifier
    side: Any = config.image_size
    last = (side // config.patch_size) ** 2 * 2 * config.hidden_size * config.intermediate_size
    # Pixels need no gradient. torch stops computing a layer anew at the input of its last product.
    return forward, 3 * forward - patches + (depth * (layer - last) if checkpointing else 0)


def peak_bytes(
    counts: Counts,
    batch: int,
    *,
    checkpointing: bool = False,
    ranks: int = 1,
    fsdp: bool = False,
    accumulating: bool = False,
) -> float:
    """Return the highest number of bytes of tensors that one GPU holds in a step.

    The highest of three moments: early in the backward pass all activations live and no gradient
    does; in the first encoder layer one layer's activations and nearly all gradients; at the
    optimizer's step all gradients. Accumulated gradients live all the time. FSDP2 shards weights,
    moments and gradients, and holds two whole layers in bfloat16; DDP has its buckets, a second
    copy of the gradients.
    """
    gradients = float(FLOAT32 * counts.total)
    lasting = 3 * gradients + (gradients if ranks > 1 else 0)
    # Autocast's copies of weights are saved for the backward pass, except in layers computed anew.
    anew = counts.depth * counts.layer if checkpointing else 0
    casts = BFLOAT16 * (counts.products - anew)
    if fsdp and ranks > 1:
        gathered, casts = 2 * BFLOAT16 * counts.layer, 0
        lasting = 3 * gradients / ranks + gathered
        gradients = gradients / ranks + gathered / 2
    again = counts.saved_layer if checkpointing else 0
    # The pooling head is passed first, and its share is free when the gradients appear.
    flight = max(0, counts.transient + again - counts.saved_head)
    activations = batch * (counts.saved(checkpointing) + flight)
    first_layer = batch * (counts.pixels + counts.saved_layer + counts.transient)
    later = gradients * (1 - counts.layer / counts.total)
    if accumulating:
        return lasting + gradients + max(casts + activations, first_layer)
    return lasting + max(casts + activations, later + first_layer, gradients)


def largest_batch(counts: Counts, capacity: float, **options: Any) -> int:
    """Return the largest batch of a GPU with so many bytes; 0 if no image fits."""
    usable = capacity * (1 - FRAGMENTATION) - RESERVED_BYTES
    low, high = 0, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        fits = peak_bytes(counts, middle, **options) <= usable
        low, high = (middle, high) if fits else (low, middle)
    return low


def predict_step(
    config: SiglipVisionConfig, counts: Counts, ranks: int, batch: int, fsdp: bool = False
) -> tuple[float, float]:
    """Return the seconds of a step, and those of communication that no computing hides."""
    forward_flops, step_flops = count_flops(config)
    launches = (counts.depth + 2) * OPERATIONS_PER_LAYER * LAUNCH
    compute = max(batch * step_flops / (PEAK * UTILIZATION), launches)
    forward = compute * forward_flops / step_flops
    inside = ranks <= GPUS_PER_NODE
    rate = (LINK_RATE if inside else NETWORK_RATE) * WIRE_SHARE
    start = LINK_START if inside else NETWORK_START
    exposed, owned = 0.0, counts.total
    if ranks > 1 and not fsdp:
        gradients = FLOAT32 * counts.total
        buckets = math.ceil(gradients / DDP_BUCKET_BYTES)
        # A ring sends everything twice; large worlds reduce along trees of logarithmic depth.
        hops = 2 * math.ceil(math.log2(ranks))
        wire = 2 * (ranks - 1) / ranks * gradients / rate + buckets * hops * start
        last = wire / buckets  # full when the backward pass has ended
        exposed = last + max(0.0, wire - last - OVERLAP * (compute - forward))
    elif ranks > 1:
        owned //= ranks
        low = (ranks - 1) / ranks * BFLOAT16 * counts.total
        one = low / rate + counts.depth * (ranks - 1) * start  # a gather or a scatter of all layers
        last = one / counts.depth
        exposed = last + max(0.0, one - last - OVERLAP * forward)
        exposed += last + max(0.0, 2 * one - last - OVERLAP * (compute - forward))
    return compute + exposed + UPDATE_BYTES * owned / MEMORY_RATE, exposed


def predict_training(name: str, ranks: int, batch: int, images: int) -> float:
    """Return the seconds of an epoch's training with DDP."""
    config = make_config(name)
    steps = math.ceil(images / (ranks * batch))
    return steps * predict_step(config, count(config), ranks, batch)[0]


def estimate_needs(name: str, batch: int = 64, images: int = 6149) -> dict[str, dict[str, float]]:
    """Return memory in bytes, seconds per epoch and disk in bytes on one GPU, by method.

    Memory includes what CUDA takes and the allocator loses. ``head`` encodes each image once: its
    seconds are those of the whole training. ``lora`` has rank 16 on all products, saves what full
    fine-tuning saves (without dropout an upper bound) and computes no gradients of frozen weights.
    """
    config = make_config(name)
    counts = count(config)
    products = [m for m in build_on_meta(config).modules() if isinstance(m, torch.nn.Linear)]
    adapters = sum(16 * (m.in_features + m.out_features) for m in products)
    frozen, casts = FLOAT32 * counts.total, BFLOAT16 * counts.products
    saved = batch * (counts.saved() + max(0, counts.transient - counts.saved_head))
    full = predict_training(name, 1, batch, images)
    once = images * count_flops(config)[0] / (PEAK * UTILIZATION)
    tensors = {
        "head": (frozen + casts + batch * (counts.pixels + counts.saved_layer), once, 0),
        "lora": (frozen + 4 * FLOAT32 * adapters + casts + saved, full * 2 / 3, adapters),
        "all": (peak_bytes(counts, batch), full, counts.total),
    }
    # The newest checkpoint and the best one, each with two moments per trained weight; model/.
    return {
        method: {
            "memory": memory / (1 - FRAGMENTATION) + RESERVED_BYTES,
            "seconds": seconds,
            "disk": frozen + 2 * 3 * FLOAT32 * trained,
        }
        for method, (memory, seconds, trained) in tensors.items()
    }


def find_most_gpus(name: str, images: int, update: int | None, local: int = 64) -> int:
    """Return the most GPUs with an efficiency of one half; ``update`` images share one step."""

    def train(ranks: int) -> float:
        batch = local if update is None else max(1, update // ranks)
        return predict_training(name, ranks, batch, images)

    good = [n for n in WORLDS if (update is None or n <= update) and train(1) >= 0.5 * n * train(n)]
    return max(good)


def format_tables() -> str:
    """Return the tables of docs/scaling.md."""
    memory, batches = [], []
    for name in SHAPES:
        counts = count(make_config(name))
        sizes = [peak_bytes(counts, 0), peak_bytes(counts, 0, ranks=8)]
        sizes += [peak_bytes(counts, 0, ranks=n, fsdp=True) for n in (8, 64)]
        saved = [counts.saved(again) / 1e6 for again in (False, True)]
        memory.append([name, round(counts.total / 1e6), *(size / 1e9 for size in sizes), *saved])
        cells = []
        for capacity, fsdp in ((24e9, False), (24e9, True), (40e9, False), (80e9, False)):
            both = [
                largest_batch(counts, capacity, ranks=8, fsdp=fsdp, checkpointing=again)
                for again in (False, True)
            ]
            cells.append(f"{both[0]} / {both[1]}" if both[0] else "does not fit")
        batches.append([name, *cells])
    jobs = {
        "Flowers102, 64 images per update": (6149, 64),
        "1 M images, 1024 per update": (10**6, 1024),
        "1 M images, 64 per GPU": (10**6, None),
    }
    most = [
        [title, *(find_most_gpus(name, *job) for name in SCALED)] for title, job in jobs.items()
    ]
    heads = ["", "parameters, M", "1 GPU, GB", "DDP", "FSDP2, 8", "FSDP2, 64"]
    heads += ["per image, MB", "with checkpointing"]
    return "\n\n".join(
        [
            format_table(heads, memory),
            format_table(["", "24 GB, DDP", "24 GB, FSDP2", "40 GB, DDP", "80 GB, DDP"], batches),
            format_table(["most GPUs with 50% efficiency", *SCALED], most),
        ]
    )


def describe_recipe(path: Path) -> str:
    """Return the memory that a configuration takes on one GPU, in a sentence."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    name = CHECKPOINTS[recipe["model_name_or_path"]]
    batch = recipe.get("per_device_train_batch_size", 64)
    peak = peak_bytes(
        count(make_config(name)),
        batch,
        checkpointing=recipe.get("gradient_checkpointing", False),
        accumulating=recipe.get("gradient_accumulation_steps", 1) > 1,
    )
    return f"{path}: {peak / 1e9:.1f} GB of tensors on one GPU ({name}, {batch} images per step)"


def main() -> None:
    """Print one recipe's memory, or print and write the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--config", type=Path, help="A configuration of train.py.")
    options = parser.parse_args()
    if options.config is not None:
        print(describe_recipe(options.config))
        return
    text = f"`{COMMAND}`\n\n{format_tables()}\n"
    write_text(RESULTS / "scaling_model.md", text)
    needs = {name: estimate_needs(name) for name in CHECKPOINTS.values()}
    write_json(RESULTS / "scaling_model.json", {"command": COMMAND, "needs": needs})
    print(text)


if __name__ == "__main__":
    main()
