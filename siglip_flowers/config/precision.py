"""The number formats a model can be run in, and which of them a device computes natively."""

DTYPES = ("auto", "float32", "bfloat16", "float16")


def computes_bfloat16(device_type: str) -> bool:
    """Return whether a kind of device ("cuda", "cpu", ...) computes bfloat16 natively."""
    import torch

    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A processor without these instructions emulates bfloat16, slower than float32.
    return device_type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
