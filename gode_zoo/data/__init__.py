"""Images as uint8 tensors: found or downloaded, decoded once, cached, and handed out in batches.

    data = load_dataset("torch/cifar10", "train")         # ImageData: images (N, 3, 32, 32) uint8, labels (N,) int64
    for images, labels in batches(data.to("cuda"), 128, shuffle=True, drop_last=True, generator=order):
        x = normalize(random_crop(images, 4, augment), mean, std)              # of augmentation.py

Names are timm's: `torch/mnist`, `torch/cifar10` and what else `timm.data.create_dataset` knows under `torch/` and `hfds/`;
any other name is the path of a folder or tar with one folder of images a class, or of a folder that holds `train` and `test`
(each a folder or a tar).

Where the named datasets are looked for, in this order: `data_dir`; or, where none is given, the environment variable
`GODE_ZOO_DATA`, `../shared/data` beside the checkout, and the cache folder, into which torchvision downloads what is nowhere.
The cache folder is `GODE_ZOO_CACHE`, by default `~/.cache/gode_zoo`.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ._folders import find_split, load_path, user_path
from ._images import SPLIT_NAMES, DataError, ImageData, size, some
from ._named import load_named

__all__ = ["DataError", "ImageData", "batches", "holdout", "load_dataset", "normalize"]


def load_dataset(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    input_size: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    download: bool = True,
    cache: bool = True,
) -> ImageData:
    """Load a split as uint8 tensors on the CPU.

    Args:
        name: `torch/mnist`, `torch/cifar10`, another `torch/…` or `hfds/…` name of timm's, or the path of a folder or tar.
        split: `train` or `test`.
        data_dir: where datasets are kept; nowhere else is looked then.
        input_size: (C, H, W) that every image must have; None takes the first image's.
        num_classes: at most so many classes, as the model has.
        download: let torchvision or the Hub download what is not found.
        cache: keep decoded images (those of folders and tars) in the cache folder.

    Raises:
        DataError: no such dataset (what was looked for, where, and how to get it), or an image that cannot be used.
    """
    if split not in SPLIT_NAMES:
        raise DataError(f"split = {split!r} is not known (allowed: train, test)")
    if name.startswith(("torch/", "hfds/")):
        data = load_named(name, split, data_dir, input_size, download, cache)
    else:
        data = load_path(find_split(user_path(name, data_dir), split), split, input_size, cache)
    if input_size is not None and tuple(data.images.shape[1:]) != tuple(input_size):
        raise DataError(
            f"{data.source}: images are {size(data.images.shape[1:])} (channels x rows x columns), the model takes "
            f"{size(input_size)}: choose a model of that input, or convert the images"
        )
    if num_classes is not None and len(data.classes) > num_classes:
        raise DataError(
            f"{data.source}: has {len(data.classes)} classes ({some(data.classes)}), the model has {num_classes}: "
            f"make the model with num_classes={len(data.classes)}, or take class folders away"
        )
    return data


def batches(
    data: ImageData,
    batch_size: int,
    *,
    shuffle: bool,
    drop_last: bool,
    generator: torch.Generator | None = None,
    start: int = 0,
    mirrored: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (B, C, H, W) uint8 and labels (B,), batch by batch, from batch `start` on.

    With `shuffle` the order is drawn once, from `generator`, whatever `start` is. `mirrored` (N,) says which images are
    given as seen in a mirror.
    """
    count = len(data)
    device = data.images.device
    order = torch.randperm(count, generator=generator, device=device) if shuffle else torch.arange(count, device=device)
    end = count - count % batch_size if drop_last else count
    for i in range(start * batch_size, end, batch_size):
        index = order[i : min(i + batch_size, end)]
        images = data.images[index]
        if mirrored is not None:
            images = torch.where(mirrored[index][:, None, None, None], images.flip(3), images)
        yield images, data.labels[index]


def holdout(data: ImageData, fraction: float, seed: int) -> tuple[ImageData, ImageData]:
    """Split into (rest, held out), at random but the same for the same `seed`.

    Raises:
        DataError: a fraction that leaves one of the two empty.
    """
    kept_out = round(fraction * len(data))
    if not 0 < kept_out < len(data):
        raise DataError(
            f"holdout = {fraction} of {len(data)} images is {kept_out} images: it must leave both parts at least one"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).to(data.images.device)
    return data.subset(order[kept_out:].sort().values), data.subset(order[:kept_out].sort().values)


def normalize(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 images (B, C, H, W) as floats `(images / 255 - mean) / std`, by channel."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), dtype, images.device)
    return images.to(dtype) * scale - shift


@functools.lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Kept, since a GPU would have to be waited for to copy them."""
    scale = torch.tensor([1.0 / (255.0 * s) for s in std], dtype=dtype, device=device)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], dtype=dtype, device=device)
    return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
