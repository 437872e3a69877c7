"""Data sets by timm's names: found as torchvision leaves them, or as folders and tars, or downloaded."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._cache import cache_dir
from ._folders import load_path, stack
from ._images import DataError, ImageData

__all__ = ["load_named"]

_logger = logging.getLogger(__name__)

_FILE_PREFIX = {"train": "train", "test": "t10k"}  # of MNIST's files
_MNIST_CLASSES = tuple(str(digit) for digit in range(10))


def load_named(
    name: str, split: str, data_dir: str | Path | None, input_size: Any, download: bool, cache: bool
) -> ImageData:
    roots = [Path(data_dir).expanduser()] if data_dir is not None else _default_roots()
    readers: dict[str, Callable[..., ImageData | None]] = {"torch/mnist": _read_mnist, "torch/cifar10": _read_cifar10}
    if name not in readers:
        return _load_by_timm(name, split, roots[-1], input_size, download)
    for root in roots:
        data = readers[name](root, split, input_size, cache)
        if data is not None:
            return data
    if download:
        _download(name, roots)
        data = readers[name](roots[-1], split, input_size, cache)
        if data is not None:
            return data
    raise DataError(_missing(name, roots))


def _default_roots() -> list[Path]:
    roots = [Path(os.environ["GODE_ZOO_DATA"]).expanduser()] if os.environ.get("GODE_ZOO_DATA") else []
    return [*roots, Path(__file__).resolve().parents[3] / "shared" / "data", cache_dir() / "data"]


def _missing(name: str, roots: list[Path], why: str = "") -> str:
    files = {
        "torch/mnist": "mnist/MNIST/raw/train-images-idx3-ubyte.gz and its three companions",
        "torch/cifar10": "cifar10/train.tar and cifar10/test.tar, or cifar-10-batches-py/",
    }[name]
    looked = ", ".join(str(root) for root in roots)
    return (
        f"dataset {name} was not found: looked for {files} in {looked}. Point --data-dir or the environment variable "
        f"GODE_ZOO_DATA at a folder that has them, or connect to a network and torchvision will download them{why}"
    )


def _download(name: str, roots: list[Path]) -> None:
    """torchvision downloads into the last of `roots` and checks the md5 sums."""
    import torchvision

    kind, folder = {
        "torch/mnist": (torchvision.datasets.MNIST, "mnist"),
        "torch/cifar10": (torchvision.datasets.CIFAR10, "cifar10"),
    }[name]
    root = roots[-1] / folder
    new = [path for path in (root, *root.parents) if not path.exists()]
    _logger.info("downloading %s into %s", name, root)
    try:
        for train in (True, False):
            kind(str(root), train=train, download=True)
    except (OSError, RuntimeError) as error:  # no network, a full disk, a wrong md5 sum
        for path in (
            *sorted(root.rglob("*"), reverse=True),
            *new,
        ):  # a folder made for nothing, perhaps at a mistyped path
            with contextlib.suppress(OSError):
                path.rmdir()  # of an empty folder; anything else stays
        raise DataError(_missing(name, roots, f" (the download failed: {str(error).splitlines()[0]})")) from error


def _load_by_timm(name: str, split: str, root: Path, input_size: Any, download: bool) -> ImageData:
    """Any other dataset that timm knows, through its own reader."""
    from timm.data import create_dataset

    kind = name.partition("/")[0]
    options: dict[str, Any] = {"download": download} if kind == "torch" else {}
    try:
        dataset = create_dataset(name, root=str(root), split=split, is_training=split == "train", **options)
        count = len(dataset)
    except Exception as error:  # each library raises its own kinds
        raise DataError(
            f"dataset {name}, split {split}: timm could not open it ({type(error).__name__}: {str(error).splitlines()[0]}): "
            f"check the name, the network, and that the package behind {kind}/ is installed"
        ) from error
    source = getattr(dataset, "reader", dataset)
    classes = getattr(source, "classes", None) or list(getattr(source, "class_to_idx", {}))
    decoded = ((f"{name}, image {i}", *dataset[i]) for i in range(count))
    images, labels = stack(decoded, count, input_size)
    if not classes:
        classes = range(int(labels.max()) + 1)
    return ImageData(images, labels, tuple(str(c) for c in classes), f"{name} in {root}")


# MNIST: idx files, read where they are (they may lie in a read-only folder), packed or not.


def _read_mnist(root: Path, split: str, input_size: Any, cache: bool) -> ImageData | None:
    prefix = _FILE_PREFIX[split]
    for folder in (root / "mnist" / "MNIST" / "raw", root / "MNIST" / "raw"):
        paths = [_packed_or_not(folder / f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        if all(paths):
            images, labels = (_read_idx(path) for path in paths if path is not None)
            if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or int(labels.max()) > 9:
                raise DataError(
                    f"{paths[0]} and {paths[1]}: shapes {tuple(images.shape)} and {tuple(labels.shape)} do not belong together: "
                    f"fetch the files again"
                )
            return ImageData(images[:, None], labels.long(), _MNIST_CLASSES, str(folder))
    return None


def _packed_or_not(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes: two zero bytes, type 8, number of dimensions, each dimension (4 bytes), the bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}): fetch the file again") from error
    ndim = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim))
    if not shape or len(content) != 4 + 4 * ndim + int(np.prod(shape)):
        raise DataError(f"{path}: is not a whole idx file of bytes ({len(content)} bytes): fetch the file again")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def _read_cifar10(root: Path, split: str, input_size: Any, cache: bool) -> ImageData | None:
    for folder in (root / "cifar10", root):
        for path in (folder / f"{split}.tar", folder / split):
            if folder.name == "cifar10" and path.exists():
                return load_path(path, split, input_size, cache)
        if (folder / "cifar-10-batches-py").is_dir():  # as torchvision unpacks it
            import torchvision

            try:
                dataset = torchvision.datasets.CIFAR10(str(folder), train=split == "train", download=False)
            except RuntimeError as error:
                raise DataError(f"{folder / 'cifar-10-batches-py'}: {error}: fetch it again") from error
            images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
            return ImageData(images, torch.tensor(dataset.targets), tuple(dataset.classes), str(folder))
    return None
