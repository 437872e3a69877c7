"""Splits of a data set: taken as they are, or made, seeded, by class, and written down.

    parts = split_samples(source, val_fraction=0.2, seed=0)       # {"train": […], "val": […], "test": […]}

Where there is no validation split, a fraction of the training images of each class is held out, at least one of a class
that has two or more; of outcomes, which are no classes, a fraction of all. A test split is never made and never used to
choose anything.
"""

from __future__ import annotations

import csv
import io
import logging
import random
from collections import Counter

from torch import Tensor

from ..data import DataError
from ..images.sources import ImageSource, Sample

__all__ = ["describe_balance", "describe_outcomes", "split_outcomes", "split_samples", "split_table"]

_logger = logging.getLogger(__name__)


def split_samples(source: ImageSource, val_fraction: float, seed: int) -> dict[str, list[Sample]]:
    """The samples of train, val and test; test may be empty.

    Args:
        source: from `find_images`.
        val_fraction: of the training images, to hold out where there is no validation split.
        seed: the same seed gives the same split.

    Raises:
        DataError: nothing can be held out, since no class has two images.
    """
    train, val, test = _given(source, val_fraction)
    if val:
        missing = [c for c in source.classes if c not in {sample.label for sample in val}]
        if missing:
            _logger.warning(
                "val has no image of %s%s: how well %s learned is not seen",
                ", ".join(missing[:12]),
                f" and {len(missing) - 12:,} more classes" if len(missing) > 12 else "",
                "they are" if len(missing) > 1 else "it is",
            )
        return {"train": train, "val": val, "test": test}
    by_class: dict[str, list[Sample]] = {name: [] for name in source.classes}
    for sample in train:
        by_class[sample.label].append(sample)
    alone = [name for name, samples in by_class.items() if len(samples) == 1]
    if len(alone) == len(by_class):
        raise DataError(
            f"{source.name}: every class has one image, so none can be held out for validation: add images, or a val split"
        )
    if alone:
        _logger.warning(
            "%d classes have one image, which is trained on: how well they are learned is not seen", len(alone)
        )
    held_out: set[int] = set()
    for name, samples in by_class.items():
        # A generator for each class, so that images added to one class leave the split of the others alone.
        order = random.Random(f"{seed} {name}").sample(range(len(samples)), len(samples))
        count = min(max(round(val_fraction * len(samples)), 1), len(samples) - 1)
        held_out.update(id(samples[i]) for i in order[:count])
    return _parts(train, held_out, test)


def split_outcomes(source: ImageSource, val_fraction: float, seed: int) -> dict[str, list[Sample]]:
    """As `split_samples` where labels are outcomes: a fraction of all training images is held out, at least one.

    Raises:
        DataError: there are fewer than three images to train with and hold out.
    """
    train, val, test = _given(source, val_fraction)
    if val:
        return {"train": train, "val": val, "test": test}
    if len(train) < 3:
        raise DataError(f"{source.name}: has {len(train)} images: at least 3 are needed, to train with and to hold out")
    order = random.Random(f"{seed} outcomes").sample(train, len(train))
    count = min(max(round(val_fraction * len(train)), 1), len(train) - 2)
    return _parts(train, {id(sample) for sample in order[:count]}, test)


def _given(source: ImageSource, val_fraction: float) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Train, val and test as the data have them."""
    if not 0.0 < val_fraction < 1.0:
        raise ValueError(f"val_fraction = {val_fraction} must be between 0 and 1")
    return source.of("train") + source.of(""), source.of("val"), source.of("test")


def _parts(train: list[Sample], held_out: set[int], test: list[Sample]) -> dict[str, list[Sample]]:
    """The three splits, with those of ``train`` held out whose `id` is in ``held_out``."""
    return {
        "train": [sample for sample in train if id(sample) not in held_out],
        "val": [sample for sample in train if id(sample) in held_out],
        "test": test,
    }


def split_table(parts: dict[str, list[Sample]]) -> str:
    """CSV with a row an image: path, label, split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "split"])
    for split, samples in parts.items():
        writer.writerows([sample.name, sample.label, split] for sample in samples)
    return text.getvalue()


def describe_balance(samples: list[Sample], balanced: bool) -> str:
    """One line on how many images the classes have, and what to do where they differ much."""
    counts = Counter(sample.label for sample in samples)
    (most, n_most), (least, n_least) = counts.most_common()[0], counts.most_common()[-1]
    line = f"training images a class: {n_least:,} ({least}) to {n_most:,} ({most})"
    if n_most <= 3 * n_least:
        return line
    return (
        f"{line}; drawn equally often (--balanced)"
        if balanced
        else f"{line}; --balanced draws each class equally often"
    )


def describe_outcomes(family: str, y: Tensor) -> str:
    """One line on where outcomes (N,) lie."""
    return f"{family} outcomes of the training images: mean {y.mean():.4g}, from {y.min():.4g} to {y.max():.4g}"
