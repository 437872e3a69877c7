"""Small folders of images, and a model in a moment, for tests of fine-tuning."""

import json
from pathlib import Path

import numpy as np
from hub_runs import make_run
from PIL import Image

FAST = {"progress": False, "device": "cpu", "lr": 0.05, "epochs": 2, "batch_size": 8, "amp": "none"}


def bright(label: str, random: np.random.Generator, size: int = 28) -> Image.Image:
    """Noise, bright above or below as the label's first letter says."""
    pixels = random.integers(0, 80, (size, size), dtype=np.uint8)
    half = slice(0, size // 2) if label.startswith("a") else slice(size // 2, size)
    pixels[half] += 150
    return Image.fromarray(pixels)


def make_images(
    folder: Path, count: int = 12, labels=("above", "below"), size: int = 28, splits=("",), colour=False
) -> Path:
    """`count` images of each label in each split."""
    random = np.random.default_rng(0)
    for split in splits:
        for label in labels:
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = bright(label, random, size)
                (image.convert("RGB").point(lambda v: v) if colour else image).save(
                    folder / split / label / f"{i:02d}.png"
                )
    return folder


def start_model(folder: Path, model: str = "stem_mnist", **changes) -> Path:
    """The folder of an untrained model whose two classes are cat and dog."""
    return make_run(folder, model, **changes)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())
