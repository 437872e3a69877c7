"""What a data set is in memory, and the error that a bad one gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SPLIT_NAMES", "DataError", "ImageData", "size", "some"]

SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


class DataError(ValueError):
    """A data set or an image that is missing, broken, or not what the model takes."""


@dataclass(frozen=True)
class ImageData:
    """A split of a dataset, whole and in memory.

    `images` (N, C, H, W) uint8, `labels` (N,) int64 in `0 .. len(classes) - 1`, both on one device; `source` says where
    they were read from.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> ImageData:
        """The same images on `device`."""
        return ImageData(self.images.to(device), self.labels.to(device), self.classes, self.source)

    def sample(self, count: int | None) -> ImageData:
        """`count` images drawn at random but always the same, or all where there are no more, or None is given.

        The first ones would not do: in a folder or tar they are all of one class.
        """
        if count is None or count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        return self.subset(order[:count].sort().values.to(self.labels.device))

    def subset(self, index: Tensor) -> ImageData:
        """The images at `index` (K,), in its order."""
        return ImageData(self.images[index], self.labels[index], self.classes, self.source)


def size(shape: Any) -> str:
    """`3x32x32`."""
    return "x".join(str(int(n)) for n in shape)


def some(names: tuple[str, ...]) -> str:
    """The first of many names."""
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
