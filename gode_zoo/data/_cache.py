"""The cache of decoded images: one safetensors file a source and split, written beside and renamed over."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["cache_dir", "read_cache", "write_cache"]

_logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    return Path(os.environ.get("GODE_ZOO_CACHE") or "~/.cache/gode_zoo").expanduser()


def read_cache(path: Path, count: int, num_classes: int) -> tuple[Tensor, Tensor] | None:
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


def write_cache(path: Path, images: Tensor, labels: Tensor) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images, "labels": labels}, beside)
        os.replace(beside, path)
    except OSError as error:  # a full or read-only disk costs time at the next start, no more
        _logger.warning("could not cache decoded images in %s: %s", path, error)
    finally:
        beside.unlink(missing_ok=True)
