"""Images of any size and mode, as the pixels that a model takes.

    pixels = read_image(Path("cat.jpg"), (3, 32, 32))                # (3, 32, 32) uint8
    images, broken = read_images(samples, (3, 32, 32))               # all of them, on several threads

What is done to an image, in this order:
    turned           as its EXIF entry says
    8 bits           of 16 bits the upper eight; floating point in [0, 1] or [0, 255]
    no transparency  it is laid on white
    grey or RGB      as C of (C, H, W) says; palettes, CMYK, LAB and the like are converted
    resized          bicubic, antialiased, of the largest middle part that has the shape H×W

Memory: an image of more than `MAX_PIXELS` is refused by its header, before a pixel is decoded; of the images above
`_LARGE` only one is decoded at a time. A large JPEG is decoded at a fraction of its size where that suffices.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data import DataError

__all__ = ["EXTENSIONS", "MAX_PIXELS", "Broken", "is_image", "read_image", "read_images", "refuse_broken"]

_logger = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970  # Pillow's own bound: an RGB image of so many takes half a gigabyte
_LARGE = 20_000_000
_large_one_by_one = threading.Lock()

# What is read. Pillow knows more; some of it starts other programs (EPS), or is no picture.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
EXTENSIONS = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".ico", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class Broken:
    """A file that could not be read as an image, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


class Readable(Protocol):
    """Something with a name that opens an image: a path, a binary file, or an image that is decoded already."""

    @property
    def name(self) -> str: ...

    def open(self) -> Path | IO[bytes] | Image.Image: ...


def read_image(source: Path | IO[bytes] | Image.Image, input_size: Sequence[int], name: str = "") -> Tensor:
    """One image as (C, H, W) uint8; see the head of the module.

    Args:
        source: a path, a file opened in binary mode, or an image.
        input_size: (C, H, W), C being 1 or 3.
        name: for the message; the path where empty.

    Raises:
        DataError: no such file, not an image, a damaged one, or one that is too large.
    """
    name = name or str(source)
    try:
        return _read(source, input_size)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        raise DataError(f"{name}: {_reason(error)}") from error


def read_images(
    samples: Sequence[Readable],
    input_size: Sequence[int],
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor, list[int], list[Broken]]:
    """Decode many images on several threads.

    Args:
        samples: what to read.
        input_size: (C, H, W).
        workers: threads; default as many as there are processors.
        on_progress: called with the number of images done.

    Returns:
        Images (K, C, H, W) uint8, their places in `samples` (K,), and the images that could not be read.

    Raises:
        DataError: they would not fit into the memory, before anything is decoded.
    """
    need = len(samples) * int(np.prod(input_size))
    free = _free_memory()
    if free is not None and need > 0.8 * free:
        raise DataError(
            f"{len(samples):,} images of {'x'.join(str(n) for n in input_size)} take {need / 2**30:.1f} GiB of memory, of "
            f"which {free / 2**30:.1f} GiB are free: choose a smaller --image-size, or fewer images"
        )
    images = torch.empty(len(samples), *input_size, dtype=torch.uint8)
    kept: list[int] = []
    broken: list[Broken] = []

    def one(i: int) -> str | None:
        try:
            images[i] = _read(samples[i].open(), input_size)
        except MemoryError:
            raise
        except Exception as error:  # see `read_image`
            return _reason(error)
        return None

    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        # Pillow warns of images half as large as those refused here, and of odd metadata that is of no concern.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for i, reason in enumerate(pool.map(one, range(len(samples)))):
                if reason is None:
                    kept.append(i)
                else:
                    broken.append(Broken(samples[i].name, reason))
                on_progress(i + 1)
    finally:
        pool.shutdown(cancel_futures=True)  # so that Ctrl-C does not wait for the rest
    if broken:
        images = images[kept]
    return images, kept, broken


def refuse_broken(broken: Sequence[Broken], shown: int = 20) -> None:
    """Name every broken image in the log, and raise one error.

    Raises:
        DataError: where there is any; the first of them stand in the message.
    """
    if not broken:
        return
    for each in broken:
        _logger.error("cannot be read: %s", each)
    names = "; ".join(str(each) for each in broken[:shown])
    more = f"; and {len(broken) - shown:,} more, named above" if len(broken) > shown else ""
    raise DataError(
        f"{len(broken):,} image{'s' if len(broken) > 1 else ''} cannot be read: {names}{more}. Mend or remove them, or go "
        "on without them (--skip-broken)"
    )


def is_image(path: str | Path) -> bool:
    """Whether a file's name is one of an image, and not a hidden one."""
    name = Path(path).name
    return Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")


# ---------------------------------------------------------------------------------------------------------------------


def _read(source: Path | IO[bytes] | Image.Image, input_size: Sequence[int]) -> Tensor:
    channels, height, width = input_size
    if channels not in (1, 3):
        raise ValueError(f"a model of {channels} channels takes no pictures (allowed: 1, grey, or 3, RGB)")
    if isinstance(source, Image.Image):
        return _pixels(source, channels, height, width)
    opened = Image.open(io.BytesIO(source.read()) if not isinstance(source, Path) else source, formats=_formats())
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            enough = 2 * max(height, width)  # either way round, for EXIF may turn it
            image.draft(image.mode, (enough, enough))
        if image.width * image.height > _LARGE:
            with _large_one_by_one:
                return _pixels(image, channels, height, width)
        return _pixels(image, channels, height, width)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow can read; some depend on libraries that it was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _pixels(image: Image.Image, channels: int, height: int, width: int) -> Tensor:
    image = _opaque(_eight_bits(ImageOps.exif_transpose(image)))
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if (image.height, image.width) != (height, width):
        scale = max(height / image.height, width / image.width)
        box_w, box_h = width / scale, height / scale
        left, top = (image.width - box_w) / 2, (image.height - box_h) / 2
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + box_w, top + box_h))
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 or 32 bits as eight bits; any other as it is."""
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0.0 and high <= 1.0:
        values *= 255.0
    elif image.mode != "F" and low >= 0.0 and high <= 65535.0:
        values /= 257.0
    elif not (low >= 0.0 and high <= 255.0):  # NaN as well
        raise ValueError(
            f"has values from {low:g} to {high:g} (allowed: 0 to 65535, or floating point 0 to 1 or 0 to 255)"
        )
    return Image.fromarray(values.round().astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """A transparent image on white."""
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"is larger than {MAX_PIXELS // 10**6} million pixels, which would fill the memory: scale it down"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image, or of a format that is not read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _free_memory() -> int | None:
    """Bytes that are free; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
