"""Whole runs made small: a tiny untrained SigLIP, a tiny image folder, and both commands."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from siglip_flowers.model.loading import load_classifier, load_image_processor
from tests.conftest import REPOSITORY

CLASSES = ("aster", "borage", "clover")
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TINY["num_attention_heads"] = 2
COLORS = {"aster": (200, 40, 40), "borage": (40, 60, 210), "clover": (40, 190, 60)}


def make_checkpoint(directory: Path, image_size: int = 16, patch_size: int = 8) -> Path:
    """Save a vision tower of a few thousand parameters with its processor."""
    config = SiglipVisionConfig(**TINY, image_size=image_size, patch_size=patch_size)
    SiglipVisionModel(config).save_pretrained(directory)
    size = {"height": image_size, "width": image_size}
    processor = SiglipImageProcessorPil(
        size=size, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    processor.save_pretrained(directory)
    return directory


def save_classifier(directory: Path, names: Sequence[str], checkpoint: Path | None = None) -> Path:
    """Save an untrained classifier with its processor as ``directory/model``."""
    checkpoint = checkpoint or make_checkpoint(directory / "checkpoint")
    load_classifier(str(checkpoint), list(names)).save_pretrained(directory / "model")
    load_image_processor(str(checkpoint)).save_pretrained(directory / "model")
    return directory / "model"


def make_two_towers(directory: Path, tokenizer_dir: Path, seed: int = 0) -> Path:
    """Save both towers of a tiny untrained SigLIP, with the tokenizer of a checkpoint."""
    size = {**TINY, "hidden_size": 32, "intermediate_size": 64}
    torch.manual_seed(seed)
    text = {"projection_size": 32, "vocab_size": 1024, "max_position_embeddings": 16}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = SiglipConfig(
        text_config={**size, **text, **special},
        vision_config={**size, "image_size": 16, "patch_size": 8},
    )
    # Saved first, so that this directory's processor replaces the vision tower's own files.
    make_checkpoint(directory)
    SiglipModel(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(directory)
    return directory


def draw_image(path: Path, name: str, seed: int, size: int = 16) -> None:
    noise = np.random.default_rng(seed).integers(-30, 31, (size, size, 3))
    pixels = np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def make_folder(directory: Path, train: int = 8, held_out: int = 4) -> Path:
    """Draw an image folder of three classes that their color tells apart."""
    for split, count in (("train", train), ("validation", held_out), ("test", held_out)):
        for number, name in enumerate(CLASSES):
            folder = directory / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed = 1000 * len(split) + 100 * number + index
                draw_image(folder / f"{index}.png", name, seed)
    return directory


def small_options(checkpoint: Path, folder: Path, output_dir: Path, *more: str) -> list[str]:
    """Options of a run that takes a second or two; later ones win."""
    return [
        *("--model_name_or_path", str(checkpoint), "--data_dir", str(folder)),
        *("--report_to", "none", "--output_dir", str(output_dir), "--num_train_epochs", "2"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "1e-3", "--bf16", "false"),
        *("--train_resize_scale", "1", "--disable_tqdm", "true", "--logging_steps", "2"),
        *more,
    ]


def start_script(*arguments: str) -> subprocess.Popen:
    """Start a command as a user does, on one thread and without network."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(*words: object, cwd: Path, path: Path = REPOSITORY, **environment: str) -> str:
    """Run Python, which finds the package below a path, to a good end; return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def list_files(directory: Path) -> list[str]:
    """Return what lies below a directory, hidden files too."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
