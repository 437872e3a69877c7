"""Prediction: the likeliest classes of image files.

    predict("gode_mnist_m4", ["digit.png"])     # [[("3", 0.98), ("8", 0.01), …]]

Each image is brought to the model's size and colours: its middle square resized, grey or RGB. An MNIST model knows light
digits on a dark ground.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data.model_config import resolve_input_data_config

from .data import image_to_tensor, normalize
from .evaluate import load_published
from .families import Categorical

__all__ = ["predict"]


def predict(name: str, images: Sequence[str | Path], topk: int = 5) -> list[list[tuple[str, float]]]:
    """Classify image files.

    Args:
        name: `arch`, `arch.tag`, or the folder of a finished run.
        images: image files.
        topk: how many classes to give of each image; all, where the model has fewer.

    Returns:
        For each image its (class, probability), likeliest first.

    Raises:
        WeightsError: no such weights, or not those that were published.
        DataError: a file that is missing or is not an image.
    """
    if topk < 1:
        raise ValueError(f"topk = {topk} must be 1 or more")
    model, folder = load_published(name)
    family = getattr(model, "family", None)
    if family is not None and not isinstance(family, Categorical):
        raise ValueError(f"{name}: predicts {family.name} outcomes, not classes: call model.family.mean(model(images))")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inputs = resolve_input_data_config(model=model)
    pixels = torch.stack([image_to_tensor(path, inputs["input_size"]) for path in images])
    with torch.no_grad():
        probabilities = model(normalize(pixels, inputs["mean"], inputs["std"])).softmax(dim=1)
    top = probabilities.topk(min(topk, probabilities.shape[1]), dim=1)
    names = config.get("label_names") or [str(i) for i in range(probabilities.shape[1])]
    return [
        [(names[i], p) for i, p in zip(row, values, strict=True)]
        for row, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
