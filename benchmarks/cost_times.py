"""How long a training step takes on N GPUs, on paper, and what an epoch costs.

The step is the slower of computing (with the communication that nothing hides, and the optimizer)
and of bringing images to the GPU. Nothing here was measured on a GPU; all that is assumed stands
in :class:`Gpu` and :class:`Assumptions`.
"""

import math
from dataclasses import dataclass

from transformers import SiglipVisionConfig

from benchmarks.cost_formulas import (
    BFLOAT16_BYTES,
    DDP_BUCKET_BYTES,
    FLOAT32_BYTES,
    MOMENTS,
    Parameters,
    count_step_flops,
)

# AdamW reads parameter, gradient and moments and writes parameter and moments; the next forward
# pass reads the parameter again and writes its bfloat16 copy.
UPDATE_BYTES_PER_PARAMETER = (4 + 3 + 1) * FLOAT32_BYTES + BFLOAT16_BYTES
# Images are cached larger than the model sees them, as ``train_resize_scale`` says.
CACHE_SCALE = 1.15
EVALUATED_IMAGES = 2040
CHECKPOINT_BYTES_PER_PARAMETER = (1 + MOMENTS) * FLOAT32_BYTES


@dataclass(frozen=True)
class Gpu:
    """A GPU of a node of eight, from the maker's data sheet; all rates are per second.

    Attributes:
        flops: Dense bfloat16 peak of the tensor cores.
        memory_bytes: Capacity.
        memory_rate: Bytes to and from its memory.
        link_rate: Bytes one way between GPUs of a node (half of the quoted NVLink figure).
        network_rate: Bytes one way out of a NODE: one card of 200 or 400 Gbit/s.
    """

    name: str
    flops: float
    memory_bytes: float
    memory_rate: float
    link_rate: float
    network_rate: float


GPUS = (
    Gpu("A100 SXM 80 GB, 200 Gbit/s", 312e12, 80e9, 2.039e12, 300e9, 200e9 / 8),
    Gpu("H100 SXM 80 GB, 400 Gbit/s", 989.4e12, 80e9, 3.35e12, 450e9, 400e9 / 8),
)


@dataclass(frozen=True)
class Assumptions:
    """What no counter tells. None of it was measured on a GPU.

    Attributes:
        utilization: Share of the peak that the products of a step reach; 0.3 to 0.5 is usual.
        wire_share: Share of a link's rate that collectives reach.
        overlap: Share of a forward or backward pass during which data can travel unnoticed.
        link_seconds: Start of one hop within a node.
        network_seconds: Start of one hop between nodes.
        launch_seconds: Python and launch of one operation: the least that a small batch takes.
        host_rate: Bytes from host memory to one GPU (PCIe 4, 16 lanes, as reached).
        disk_rate: Bytes a second to the disk that takes checkpoints.
        reserved_bytes: CUDA context, NCCL and cuBLAS buffers.
        fragmentation: Share of the memory that the allocator cannot use.
        gpus_per_node: GPUs that share NVLink and one network card.
        operations_per_layer: That launch work, forward and backward under autocast (counted).
    """

    utilization: float = 0.4
    wire_share: float = 0.8
    overlap: float = 0.8
    link_seconds: float = 5e-6
    network_seconds: float = 10e-6
    launch_seconds: float = 10e-6
    host_rate: float = 20e9
    disk_rate: float = 1e9
    reserved_bytes: float = 2e9
    fragmentation: float = 0.06
    gpus_per_node: int = 8
    operations_per_layer: int = 72

    def usable_bytes(self, capacity_bytes: float) -> float:
        """Return what tensors can have of a GPU's memory."""
        return capacity_bytes * (1 - self.fragmentation) - self.reserved_bytes


@dataclass(frozen=True)
class Job:
    """One way to run one model.

    Attributes:
        config: The tower.
        parameters: Its counts.
        gpu: What it runs on.
        assumptions: What is not counted.
        strategy: ddp, zero2 or fsdp2.
        checkpointing: Whether layers are computed again in the backward pass.
        read_rate: Bytes a second that one process reads from the pixel cache.
    """

    config: SiglipVisionConfig
    parameters: Parameters
    gpu: Gpu
    assumptions: Assumptions
    strategy: str = "ddp"
    checkpointing: bool = False
    read_rate: float = math.inf


@dataclass(frozen=True)
class Step:
    """Seconds of one step; ``exposed`` is communication that no computing hides.

    ``total`` is the slower of the GPU's work and of the input path, which run side by side.
    """

    compute: float
    update: float
    communication: float
    exposed: float
    input: float

    @property
    def total(self) -> float:
        """Seconds from step to step."""
        return max(self.compute + self.exposed + self.update, self.input)


def all_reduce_bytes(size_bytes: float, ranks: int) -> float:
    """Return what each rank sends in a ring all-reduce, and receives as well.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms".
    """
    return 2 * (ranks - 1) / ranks * size_bytes


def all_gather_bytes(size_bytes: float, ranks: int) -> float:
    """Return what each rank sends in a ring all-gather or reduce-scatter of ``size_bytes``."""
    return (ranks - 1) / ranks * size_bytes


def transfer_seconds(
    sent_bytes: float, hops: int, messages: int, ranks: int, gpu: Gpu, assumptions: Assumptions
) -> float:
    """Return the time of collectives in which each rank sends so much over so many hops.

    A ring over nodes enters and leaves each node once: its one network card carries what a single
    rank sends, and is the slowest link.
    """
    inside = ranks <= assumptions.gpus_per_node
    rate = (gpu.link_rate if inside else gpu.network_rate) * assumptions.wire_share
    start = assumptions.link_seconds if inside else assumptions.network_seconds
    return sent_bytes / rate + messages * hops * start


def predict_step(job: Job, ranks: int, batch: int) -> Step:
    """Predict one step of ``ranks`` GPUs with ``batch`` images each."""
    assumptions, gpu, parameters = job.assumptions, job.gpu, job.parameters
    flops = count_step_flops(job.config, checkpointing=job.checkpointing)
    depth = job.config.num_hidden_layers
    reached = gpu.flops * assumptions.utilization
    launches = (depth + 2) * assumptions.operations_per_layer * assumptions.launch_seconds
    compute = max(batch * flops.step / reached, launches * (4 / 3 if job.checkpointing else 1))
    forward = compute * flops.forward / flops.step
    backward = compute - forward
    hidden_forward = assumptions.overlap * forward
    hidden_backward = assumptions.overlap * backward

    def transfer(sent_bytes: float, hops: int, messages: int) -> float:
        return transfer_seconds(sent_bytes, hops, messages, ranks, gpu, assumptions)

    communication = exposed = 0.0
    owned = float(parameters.trained)
    if ranks > 1 and job.strategy == "ddp":
        gradients = FLOAT32_BYTES * parameters.trained
        buckets = math.ceil(gradients / DDP_BUCKET_BYTES)
        # Large worlds reduce along trees, whose depth is a logarithm.
        hops = 2 * math.ceil(math.log2(ranks))
        communication = transfer(all_reduce_bytes(gradients, ranks), hops, buckets)
        # The last bucket is full when the backward pass has ended.
        last = communication / buckets
        exposed = last + max(0.0, communication - last - hidden_backward)
    elif ranks > 1:
        owned = parameters.trained / ranks
        low = all_gather_bytes(BFLOAT16_BYTES * parameters.total, ranks)
        gather = transfer(low, ranks - 1, depth)
        scatter = transfer(low, ranks - 1, depth)
        last = scatter / depth
        if job.strategy == "zero2":
            communication = gather + scatter
            exposed = gather + last + max(0.0, scatter - last - hidden_backward)
        else:
            communication = 2 * gather + scatter
            exposed = gather / depth + max(0.0, gather - gather / depth - hidden_forward)
            exposed += last + max(0.0, gather + scatter - last - hidden_backward)
    side = job.config.image_size
    assert isinstance(side, int)
    image = job.config.num_channels * round(side * CACHE_SCALE) ** 2
    return Step(
        compute=compute,
        update=UPDATE_BYTES_PER_PARAMETER * owned / gpu.memory_rate,
        communication=communication,
        exposed=exposed,
        input=batch * image / min(job.read_rate, assumptions.host_rate),
    )


@dataclass(frozen=True)
class Epoch:
    """What one pass over the images takes.

    Attributes:
        updates: Steps of the optimizer.
        train_seconds: Training alone.
        other_seconds: Evaluation of ``EVALUATED_IMAGES`` and one checkpoint.
        gpu_hours: Of all GPUs, everything included.
    """

    updates: int
    train_seconds: float
    other_seconds: float
    gpu_hours: float

    @property
    def seconds(self) -> float:
        """Training, evaluation and checkpoint."""
        return self.train_seconds + self.other_seconds


def predict_epoch(job: Job, ranks: int, batch: int, images: int) -> Epoch:
    """Predict an epoch. The last step may be short, and takes as long as the others."""
    updates = math.ceil(images / (ranks * batch))
    train = updates * predict_step(job, ranks, batch).total
    forward = count_step_flops(job.config).forward
    reached = job.gpu.flops * job.assumptions.utilization
    evaluation = math.ceil(EVALUATED_IMAGES / ranks) * forward / reached
    written = CHECKPOINT_BYTES_PER_PARAMETER * job.parameters.trained
    other = evaluation + written / job.assumptions.disk_rate
    return Epoch(updates, train, other, ranks * (train + other) / 3600)
