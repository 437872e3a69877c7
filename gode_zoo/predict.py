"""Prediction: the likeliest classes of image files, or the mean of an outcome and the interval in which it lies.

    for p in predict("gode_mnist_m4", find_files(["digits/", "more/*.png"])):
        p.path, p.classes          # Path("digits/3.png"), [("3", 0.98), ("8", 0.01), …]
        p.problem                  # why a file could not be read, or None
        p.mean, p.interval         # of a model of outcomes, in place of classes: 6.2, (2.0, 12.0)

Each image is brought to the model's size and colours as `images/reading.py` says. An MNIST model knows light digits on a
dark ground.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.data.model_config import resolve_input_data_config
from torch import Tensor

from .data import DataError, normalize
from .evaluate import load_published
from .families import Categorical, Family
from .images.reading import is_image, read_image
from .images.sources import natural_key

__all__ = ["LEVEL", "OutcomePrediction", "Prediction", "find_files", "predict"]

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Prediction:
    """What a model says of one file: (class, probability), likeliest first; none where there is a problem."""

    path: Path
    classes: list[tuple[str, float]]
    problem: str | None = None


@dataclass(frozen=True)
class OutcomePrediction(Prediction):
    """What a model of outcomes says of one file: the mean, and the interval that holds an outcome with probability `LEVEL`.

    The interval is calibrated where a fine-tuning run left how; both are None where there is a problem, and there are no
    classes.
    """

    mean: float | None = None
    interval: tuple[float, float] | None = None


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
    topk: int | None = None,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
) -> Iterator[Prediction]:
    """Say what image files show, batch by batch. A file that cannot be read does not stop the rest.

    Args:
        name: `arch`, `arch.tag`, `hf-hub:ORG/NAME`, or the folder of a finished run.
        images: image files.
        topk: how many classes to give of each image, default 5; all, where the model has fewer. None of outcomes.
        batch_size: images at a time.
        device: default CUDA where there is one, else the CPU.

    Yields:
        For each image its prediction, in the order given; of a model of outcomes an `OutcomePrediction`.

    Raises:
        WeightsError: no such weights, or not those that were published.
        ValueError: a number below 1, or topk for a model of outcomes.
    """
    for what, value in (("topk", topk), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{what} = {value} must be 1 or more")
    model, folder = load_published(name)
    family = getattr(model, "family", None)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    say: Callable[[list[Path], Tensor], list[Any]]
    if family is None or isinstance(family, Categorical):
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("label_names")
        say, kind = partial(_classes, names, topk or 5), Prediction
    elif topk is not None:
        raise ValueError(f"topk = {topk}: {name} predicts {family.name} outcomes, not classes: leave it out")
    else:
        rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8")).get("intervals", ())
        asked = [row["asked"] for row in rows if row["level"] == LEVEL and row["asked"] is not None]
        say, kind = partial(_outcomes, family, asked[0] if asked else LEVEL), OutcomePrediction
    return _predict(model.to(where), say, kind, [Path(image) for image in images], batch_size, where)


def _classes(names: Sequence[str] | None, topk: int, paths: list[Path], outputs: Tensor) -> list[Prediction]:
    probabilities = outputs.softmax(dim=1)
    top = probabilities.topk(min(topk, probabilities.shape[1]), dim=1)
    return [
        Prediction(path, [(names[i] if names else str(i), p) for i, p in zip(places, values, strict=True)])
        for path, places, values in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _outcomes(family: Family, level: float, paths: list[Path], outputs: Tensor) -> list[OutcomePrediction]:
    eta = outputs.squeeze(1).cpu()
    low, high = family.interval(eta, level)
    return [
        OutcomePrediction(path, [], None, mean, (a, b))
        for path, mean, a, b in zip(paths, family.mean(eta).tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def _predict(
    model: torch.nn.Module,
    say: Callable[[list[Path], Tensor], list[Any]],
    kind: type[Prediction],
    paths: list[Path],
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
            said: Iterator[Prediction] = iter(())
            if pixels:
                with torch.no_grad():
                    x = normalize(torch.stack(pixels).to(device), inputs["mean"], inputs["std"])
                    outputs = model(x).float()
                readable = [path for path, each in zip(batch, read_ones, strict=True) if isinstance(each, Tensor)]
                said = iter(say(readable, outputs))
            for path, each in zip(batch, read_ones, strict=True):
                yield kind(path, [], each) if isinstance(each, str) else next(said)
