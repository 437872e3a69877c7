"""Prediction: the likeliest classes of image files.

    for p in predict("gode_mnist_m4", find_files(["digits/", "more/*.png"])):
        p.path, p.classes          # Path("digits/3.png"), [("3", 0.98), ("8", 0.01), …]
        p.problem                  # why a file could not be read, or None

Each image is brought to the model's size and colours as `image_reading.py` says. An MNIST model knows light digits on a
dark ground.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from timm.data.model_config import resolve_input_data_config
from torch import Tensor

from .data import DataError, normalize
from .evaluate import load_published
from .families import Categorical
from .image_reading import is_image, read_image
from .image_sources import natural_key

__all__ = ["Prediction", "find_files", "predict"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file: (class, probability), likeliest first; none where there is a problem."""

    path: Path
    classes: list[tuple[str, float]]
    problem: str | None = None


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files meant by files, folders and patterns, in natural order within each, every file once.

    A file that is named is taken as it is, there or not; of a folder all images at any depth.

    Raises:
        DataError: a folder or a pattern that has no image.
    """
    found: dict[Path, None] = {}
    for path in paths:
        name = os.path.expanduser(path)
        if os.path.isdir(name):
            inside = [Path(folder, file) for folder, _, files in os.walk(name) for file in files if is_image(file)]
            if not inside:
                raise DataError(f"{path}: holds no image: check the folder")
        elif glob.has_magic(name) and not os.path.exists(name):
            inside = [Path(file) for file in glob.glob(name, recursive=True) if os.path.isfile(file)]
            if not inside:
                raise DataError(f"{path}: no file fits this pattern: check it")
        else:
            inside = [Path(name)]
        found |= dict.fromkeys(sorted(inside, key=lambda file: natural_key(str(file))))
    return list(found)


def predict(
    name: str,
    images: Sequence[str | Path],
    topk: int = 5,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Iterator[Prediction]:
    """Classify image files, batch by batch. A file that cannot be read does not stop the rest.

    Args:
        name: `arch`, `arch.tag`, `hf-hub:ORG/NAME`, or the folder of a finished run.
        images: image files.
        topk: how many classes to give of each image; all, where the model has fewer.
        batch_size: images at a time.
        device: default CUDA where there is one, else the CPU.

    Yields:
        For each image its prediction, in the order given.

    Raises:
        WeightsError: no such weights, or not those that were published.
        ValueError: a number below 1, or a model that predicts no classes.
    """
    for what, value in (("topk", topk), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{what} = {value} must be 1 or more")
    model, folder = load_published(name)
    family = getattr(model, "family", None)
    if family is not None and not isinstance(family, Categorical):
        raise ValueError(f"{name}: predicts {family.name} outcomes, not classes: call model.family.mean(model(images))")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return _predict(
        model.to(where), config.get("label_names"), [Path(image) for image in images], topk, batch_size, where
    )


def _predict(
    model: torch.nn.Module,
    names: Sequence[str] | None,
    paths: list[Path],
    topk: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Prediction]:
    inputs = resolve_input_data_config(model=model)

    def read(path: Path) -> Tensor | str:
        try:
            return read_image(path, inputs["input_size"])
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")

    rest = iter(paths)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        while batch := list(islice(rest, batch_size)):
            read_ones = list(pool.map(read, batch))
            pixels = [each for each in read_ones if isinstance(each, Tensor)]
            rows: Iterator[list[tuple[str, float]]] = iter(())
            if pixels:
                with torch.no_grad():
                    x = normalize(torch.stack(pixels).to(device), inputs["mean"], inputs["std"])
                    probabilities = model(x).float().softmax(dim=1)
                top = probabilities.topk(min(topk, probabilities.shape[1]), dim=1)
                rows = (
                    [(names[i] if names else str(i), p) for i, p in zip(places, values, strict=True)]
                    for places, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                )
            for path, each in zip(batch, read_ones, strict=True):
                yield Prediction(path, [], each) if isinstance(each, str) else Prediction(path, next(rows))
