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

import contextlib
import functools
import gzip
import hashlib
import logging
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = [
    "DataError",
    "ImageData",
    "batches",
    "holdout",
    "load_dataset",
    "normalize",
]

_logger = logging.getLogger(__name__)

_FILE_PREFIX = {"train": "train", "test": "t10k"}  # of MNIST's files
_SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_MNIST_CLASSES = tuple(str(digit) for digit in range(10))


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


# ---------------------------------------------------------------------------------------------------------------------
# Loading


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
    if split not in _SPLIT_NAMES:
        raise DataError(f"split = {split!r} is not known (allowed: train, test)")
    if name.startswith(("torch/", "hfds/")):
        data = _load_named(name, split, data_dir, input_size, download, cache)
    else:
        data = _load_path(_find_split(_user_path(name, data_dir), split), split, input_size, cache)
    if input_size is not None and tuple(data.images.shape[1:]) != tuple(input_size):
        raise DataError(
            f"{data.source}: images are {_size(data.images.shape[1:])} (channels x rows x columns), the model takes "
            f"{_size(input_size)}: choose a model of that input, or convert the images"
        )
    if num_classes is not None and len(data.classes) > num_classes:
        raise DataError(
            f"{data.source}: has {len(data.classes)} classes ({_some(data.classes)}), the model has {num_classes}: "
            f"make the model with num_classes={len(data.classes)}, or take class folders away"
        )
    return data


def _load_named(
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
    return [*roots, Path(__file__).resolve().parents[2] / "shared" / "data", _cache_dir() / "data"]


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
    images, labels = _stack(decoded, count, input_size)
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
                return _load_path(path, split, input_size, cache)
        if (folder / "cifar-10-batches-py").is_dir():  # as torchvision unpacks it
            import torchvision

            try:
                dataset = torchvision.datasets.CIFAR10(str(folder), train=split == "train", download=False)
            except RuntimeError as error:
                raise DataError(f"{folder / 'cifar-10-batches-py'}: {error}: fetch it again") from error
            images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
            return ImageData(images, torch.tensor(dataset.targets), tuple(dataset.classes), str(folder))
    return None


# Folders and tars with one folder of images a class.


def _user_path(name: str, data_dir: str | Path | None) -> Path:
    path = Path(name.removeprefix("folder/") or ".").expanduser()
    tried = [path] if data_dir is None or path.is_absolute() else [Path(data_dir).expanduser() / path, path]
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise DataError(
        f"dataset {name!r}: there is no {' or '.join(str(p) for p in tried)}: give torch/mnist, torch/cifar10, hfds/NAME, or the "
        f"path of a folder or tar with one folder of images a class"
    )


def _find_split(path: Path, split: str) -> Path:
    """`path/train`, `path/train.tar` and the like where there is one; else `path` itself."""
    if not path.is_dir():
        return path
    for name in _SPLIT_NAMES[split]:
        for candidate in (path / name, path / f"{name}.tar"):
            if candidate.exists():
                return candidate
    others = [
        n for names in _SPLIT_NAMES.values() for n in names if (path / n).exists() or (path / f"{n}.tar").exists()
    ]
    if others:
        raise DataError(
            f"{path}: has {', '.join(others)} but no {split} split: add a folder {' or '.join(_SPLIT_NAMES[split])}"
        )
    return path


def _load_path(path: Path, split: str, input_size: Any, cache: bool) -> ImageData:
    samples, classes = _list_images(path)
    stamp = hashlib.sha256(repr((2, str(path.resolve()), split, classes, input_size, samples.stamp)).encode())
    cached = _cache_dir() / "images" / f"{stamp.hexdigest()}.safetensors"
    if cache:
        read = _read_cache(cached, len(samples), len(classes))
        if read is not None:
            return ImageData(*read, classes, str(path))
    images, labels = _stack(samples.decoded(), len(samples), input_size)
    if cache:
        _write_cache(cached, images, labels)
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


def _stack(
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
                f"{name}: is {_size(pixels.shape)} (channels x rows x columns), {whose} {_size(expected)}: "
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


# The cache of decoded images: one safetensors file a source and split, written beside and renamed over.


def _cache_dir() -> Path:
    return Path(os.environ.get("GODE_ZOO_CACHE") or "~/.cache/gode_zoo").expanduser()


def _read_cache(path: Path, count: int, num_classes: int) -> tuple[Tensor, Tensor] | None:
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        images, labels = tensors["images"], tensors["labels"]
        whole = images.dtype == torch.uint8 and images.ndim == 4 and len(images) == len(labels) == count
        if whole and 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            return images, labels
    except (SafetensorError, KeyError, OSError, RuntimeError) as error:
        _logger.warning("cache %s is damaged (%s): decoding the images again", path, error)
    return None


def _write_cache(path: Path, images: Tensor, labels: Tensor) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "labels": labels}, beside)
        os.replace(beside, path)
    except OSError as error:  # a full or read-only disk costs time at the next start, no more
        _logger.warning("could not cache decoded images in %s: %s", path, error)
    finally:
        beside.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Batches, on the device


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


def _size(shape: Any) -> str:
    return "x".join(str(int(n)) for n in shape)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
