"""Options of ``siglip-flowers probe``: which features, and which heads are fitted on them."""

from dataclasses import dataclass

from siglip_flowers.config.fields import Options, directory, option, positive
from siglip_flowers.config.model import POOLINGS

CLASS_WEIGHTS = ("none", "balanced")


@dataclass
class ProbeArguments(Options):
    """A grid of logistic regressions on the features of a frozen encoder."""

    model_name_or_path: str = option(
        "google/siglip2-base-patch16-224",
        "A SigLIP or SigLIP 2 checkpoint: a directory or a Hub id.",
        path=True,
    )
    output_dir: str = option(
        "results/linear_probe",
        "Where model, metrics and grid are written.",
        directory,
        path="output",
    )
    overwrite_output_dir: bool = option(False, "Replace what an earlier run left in --output_dir.")
    image_size: int | None = option(None, "Image side; default: the checkpoint's own.", positive)
    max_num_patches: int | None = option(None, "Most patches per image of NaFlex.", positive)
    poolings: list[str] = option(
        list(POOLINGS), "Poolings to try: map (the attention pooling) and mean.", POOLINGS
    )
    penalties: list[float] = option(
        [], "L2 penalties to try; default: two per decade from 1 to 3e-5.", positive
    )
    class_weights: list[str] = option(
        list(CLASS_WEIGHTS), "Class weights to try: none, balanced.", CLASS_WEIGHTS
    )
    neighbors: int = option(20, "Training images that vote in the k-NN accuracy.", positive)
    per_device_eval_batch_size: int = option(128, "Images per device and batch.", positive)
    bf16: bool | None = option(None, "Encode in bfloat16; default: if the device has it.")
    report_to: list[str] | None = option(
        None, "Trackers: aim, wandb, tensorboard, trackio, or none."
    )
