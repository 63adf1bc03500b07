"""How many operations a SigLIP step takes, and how many a GPU could do."""

from transformers import SiglipVisionConfig

# Dense bfloat16 tensor-core peaks in FLOP/s, from the makers' data sheets; the first match counts.
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989.4e12),
    ("H200", 989.4e12),
    ("A100", 312e12),
)
# A backward pass computes the gradients of inputs and weights: twice the forward's products.
TRAINING_FACTOR = 3


def count_forward_flops(config: SiglipVisionConfig, num_labels: int, map_head: bool = True) -> int:
    """Return the multiplications and additions of matrix products for one image.

    Source: the count of Kaplan et al. 2020, section 2.1, with the attention-pooling head.
    """
    width, inner = config.hidden_size, config.intermediate_size
    image_size, patch_size = config.image_size, config.patch_size
    assert isinstance(image_size, int)
    assert isinstance(patch_size, int)
    tokens = (image_size // patch_size) ** 2
    mlp = 2 * 2 * width * inner
    projections = 4 * 2 * width * width
    attention = 2 * 2 * tokens * width
    layer = tokens * (projections + mlp + attention)
    patches = tokens * 2 * config.num_channels * patch_size**2 * width
    # One probe asks all tokens: keys and values of each, query and output of the one.
    head = tokens * 4 * width * width + 4 * width * width + attention + mlp if map_head else 0
    return config.num_hidden_layers * layer + patches + head + 2 * width * num_labels


def find_peak(device_name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU in FLOP/s; None if it is not known."""
    return next((peak for name, peak in PEAKS if name in device_name), None)


def compute_utilization(
    images_per_second: float, forward_flops: int, device_name: str
) -> float | None:
    """Return the share of the peak that training reaches; None on an unknown device.

    Source: Chowdhery et al. 2022 (PaLM), appendix B, model FLOPs utilization.
    """
    peak = find_peak(device_name)
    return None if peak is None else TRAINING_FACTOR * forward_flops * images_per_second / peak
