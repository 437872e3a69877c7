"""The images of a fine-tuning run: found, split, every one of them decoded, and fitted to the model.

data = load_images(source, parts, targets, channels=3, image_size=32, …)
data.train.images, data.train.labels          # (N, C, H, W) uint8, (N,) int64 of classes, float32 of outcomes
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DataError, ImageData
from ..images.reading import Broken, read_images, refuse_broken
from ..images.sources import ImageSource, Sample, find_images
from ..run_display import counting
from .targets import Targets

__all__ = ["FinetuneData", "load_images", "measured_images"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneData:
    """Train, validation and (where there is one) test images, with what is learned of them and what could not be read."""

    train: ImageData
    val: ImageData
    test: ImageData | None
    targets: Targets
    channels: int
    names: dict[str, list[str]]  # of each split's images
    broken: list[Broken]


def load_images(
    source: ImageSource,
    parts: dict[str, list[Sample]],
    targets: Targets,
    channels: int,
    image_size: int,
    *,
    skip_broken: bool = False,
    progress: bool = True,
) -> FinetuneData:
    """Decode every image of every split.

    Args:
        source: from `find_images`.
        parts: the samples of each split.
        targets: what their labels mean; those of the data have been fitted to the training images.
        channels: what the model takes. Where that is one and the images have colours, three are read.
        image_size: height and width to bring them to.
        skip_broken: leave out what cannot be read, with a warning; else all of it is named in an error.
        progress: show a progress bar, where stderr is a terminal.

    Raises:
        DataError: images that cannot be read, or too few that can.
    """
    samples = [sample for part in parts.values() for sample in part]
    split_of = [split for split, part in parts.items() for _ in part]
    with counting(progress, "Reading images", len(samples)) as show:
        # As three channels in any case: whether all of them are grey is seen afterwards.
        images, kept, broken = read_images(samples, (3, image_size, image_size), on_progress=show)
    if broken and not skip_broken:
        refuse_broken(broken)
    if broken:
        _logger.warning("left out %d images that cannot be read: %s", len(broken), "; ".join(map(str, broken[:20])))
    if channels == 1:
        if _all_grey(images):
            images = images[:, :1].contiguous()
        else:
            channels = 3
            _logger.info("the images have colours: the model's first convolution is spread over three channels")
    labels = targets.read([samples[i].label for i in kept])
    of = {split: [k for k, i in enumerate(kept) if split_of[i] == split] for split in parts}

    def part(split: str) -> ImageData:
        index = torch.tensor(of[split], dtype=torch.int64)
        return ImageData(images[index], labels[index], targets.classes, f"{source.name}, {split}")

    targets = targets.fitted(labels[of["train"]], source.name)
    if not of["val"]:
        raise DataError(f"{source.name}: no image is left for validation: mend the broken ones, or add some")
    train = part("train")
    _warn_of_copies(train.images, images, of)
    names = {split: [samples[kept[k]].name for k in places] for split, places in of.items()}
    test = part("test") if of["test"] else None
    return FinetuneData(train, part("val"), test, targets, channels, names, broken)


def measured_images(
    folder: Path,
    metrics: dict[str, Any],
    targets: Targets,
    input_size: Sequence[int],
    data_dir: str | Path | None,
) -> ImageData:
    """The images that the error of a fine-tuned folder was measured on, by its split.csv.

    Raises:
        DataError: no split.csv, or no such data set (where `data_dir` or the working folder has it by its name).
    """
    try:
        text = (folder / "split.csv").read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{folder}: has no split.csv, which says on which images its error was measured (it is not published): "
            "evaluate the run's own folder"
        ) from error
    split = "val" if metrics["split"] == "validation" else metrics["split"]
    wanted = {row["path"]: row["label"] for row in csv.DictReader(text.splitlines()) if row["split"] == split}
    source = find_images(metrics["dataset"], data_dir=data_dir, outcomes=not targets.classes)
    samples = [sample for sample in source.samples if sample.name in wanted]
    images, kept, _ = read_images(samples, input_size)
    labels = targets.read([wanted[samples[i].name] for i in kept])
    return ImageData(images, labels, targets.classes, f"{source.name}, {split}")


def _all_grey(images: Tensor) -> bool:
    return all(
        torch.equal(part[:, 0], part[:, 1]) and torch.equal(part[:, 1], part[:, 2]) for part in images.split(1000)
    )


def _warn_of_copies(train: Tensor, images: Tensor, of: dict[str, list[int]]) -> None:
    """Warn where the same pixels are both trained on and measured with: the measured error is then too good."""
    seen = {_digest(image) for image in train}
    for split in ("val", "test"):
        copies = sum(_digest(images[k]) in seen for k in of[split])
        if copies:
            _logger.warning(
                "%d images of %s are in train too: the error measured on %s is too good", copies, split, split
            )


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
