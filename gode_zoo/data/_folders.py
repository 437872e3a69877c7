"""Folders and tars with one folder of images a class."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ._cache import cache_dir, read_cache, write_cache
from ._images import SPLIT_NAMES, DataError, ImageData, size

__all__ = ["find_split", "load_path", "stack", "user_path"]


def user_path(name: str, data_dir: str | Path | None) -> Path:
    path = Path(name.removeprefix("folder/") or ".").expanduser()
    tried = [path] if data_dir is None or path.is_absolute() else [Path(data_dir).expanduser() / path, path]
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise DataError(
        f"dataset {name!r}: there is no {' or '.join(str(p) for p in tried)}: give torch/mnist, torch/cifar10, hfds/NAME, or the "
        f"path of a folder or tar with one folder of images a class"
    )


def find_split(path: Path, split: str) -> Path:
    """`path/train`, `path/train.tar` and the like where there is one; else `path` itself."""
    if not path.is_dir():
        return path
    for name in SPLIT_NAMES[split]:
        for candidate in (path / name, path / f"{name}.tar"):
            if candidate.exists():
                return candidate
    others = [n for names in SPLIT_NAMES.values() for n in names if (path / n).exists() or (path / f"{n}.tar").exists()]
    if others:
        raise DataError(
            f"{path}: has {', '.join(others)} but no {split} split: add a folder {' or '.join(SPLIT_NAMES[split])}"
        )
    return path


def load_path(path: Path, split: str, input_size: Any, cache: bool) -> ImageData:
    samples, classes = _list_images(path)
    stamp = hashlib.sha256(repr((2, str(path.resolve()), split, classes, input_size, samples.stamp)).encode())
    cached = cache_dir() / "images" / f"{stamp.hexdigest()}.safetensors"
    if cache:
        read = read_cache(cached, len(samples), len(classes))
        if read is not None:
            return ImageData(*read, classes, str(path))
    images, labels = stack(samples.decoded(), len(samples), input_size)
    if cache:
        write_cache(cached, images, labels)
    return ImageData(images, labels, classes, str(path))


class _Samples:
    """timm's reader of a folder or tar; `stamp` changes when a file does."""

    def __init__(self, reader: Any, path: Path, stamp: object) -> None:
        self.reader, self.path, self.stamp = reader, path, stamp

    def __len__(self) -> int:
        return len(self.reader)

    def decoded(self) -> Iterator[tuple[str, Image.Image, int]]:
        """(file, image, label) of each sample; a broken image is an error which names it."""
        inside = f"{self.path}: " if self.path.is_file() else ""
        for i in range(len(self.reader)):
            name = inside + self.reader.filename(i, absolute=True)
            try:
                file, label = self.reader[i]
                with file:
                    image = Image.open(file)
                    image.load()
            except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{name}: cannot be read as an image ({error}): mend or remove the file") from error
            yield name, image, int(label)


def _list_images(path: Path) -> tuple[_Samples, tuple[str, ...]]:
    from timm.data.readers.img_extensions import get_img_extensions
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    from timm.data.readers.reader_image_in_tar import ReaderImageInTar

    what = f"it must hold one folder of images ({', '.join(get_img_extensions())}) a class"
    try:
        if path.is_dir():
            reader: Any = ReaderImageFolder(str(path))
            class_to_idx = reader.class_to_idx
            files = [Path(name) for name, _ in reader.samples]
        else:
            reader = ReaderImageInTar(str(path), cache_tarinfo=False)
            class_to_idx = reader.class_name_to_idx
            files = [path]
    except (RuntimeError, ValueError) as error:  # timm's words for an empty folder and an empty tar
        raise DataError(f"{path}: holds no images: {what}") from error
    except (OSError, AssertionError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read as a folder or tar of images ({error}): {what}") from error
    if "" in class_to_idx:
        raise DataError(f"{path}: has images outside of class folders: {what}")
    if path.is_dir():
        for folder in sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".")):
            if not any(folder in file.parents for file in files):
                raise DataError(f"{folder}: class folder without an image: add images or remove the folder")
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return _Samples(reader, path, stats), tuple(sorted(class_to_idx, key=class_to_idx.__getitem__))


def stack(
    decoded: Iterator[tuple[str, Image.Image, int]], count: int, input_size: tuple[int, int, int] | None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,); every image must be like `input_size`, or else like the first."""
    images: Tensor | None = None
    labels = torch.empty(count, dtype=torch.int64)
    expected, whose = input_size, "the model takes"
    for i, (name, image, label) in enumerate(decoded):
        pixels = _pixels(image, name)
        if expected is None:
            expected, whose = (pixels.shape[0], pixels.shape[1], pixels.shape[2]), f"the first image ({name}) is"
        if tuple(pixels.shape) != tuple(expected):
            raise DataError(
                f"{name}: is {size(pixels.shape)} (channels x rows x columns), {whose} {size(expected)}: "
                f"convert or remove the image"
            )
        if images is None:
            images = torch.empty(count, *expected, dtype=torch.uint8)
        images[i], labels[i] = pixels, label
    assert images is not None  # readers refuse to be empty
    return images, labels


def _pixels(image: Image.Image, name: str) -> Tensor:
    """(C, H, W) uint8, with the channels that the image has: one (grey) or three (RGB)."""
    if image.mode in ("1", "L"):
        image = image.convert("L")
    elif image.mode == "P" and "transparency" not in image.info:
        image = image.convert("RGB")
    elif image.mode != "RGB":
        raise DataError(f"{name}: has image mode {image.mode} (allowed: L grey, RGB): convert the image")
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
