"""DeepSpeed: what of it does not go, said before anything is imported or read."""

import importlib.util
import os

from siglip_flowers.base.errors import InputError

GATHERED_NOWHERE = "3"


def check_deepspeed() -> None:
    """Raise InputError if ``accelerate launch`` asks for DeepSpeed in a way that cannot work.

    With ZeRO stage 3 each process would save its own part of the weights.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == GATHERED_NOWHERE:
        raise InputError(
            "DeepSpeed's zero_stage is 3, whose weights this project does not gather; use "
            "configs/accelerate/fsdp2.yaml, which spreads the same, or zero_stage 2."
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "The launch configuration asks for DeepSpeed, which is not installed; "
            "pip install deepspeed, or launch with configs/accelerate/ddp.yaml."
        )
