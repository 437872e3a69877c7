"""Out of memory, told as the batch size that fits."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["OutOfMemoryHint", "batch_that_fits", "is_out_of_memory"]


class OutOfMemoryHint(RuntimeError):
    """Memory was not enough; the message says what would be."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says so, on a GPU or on a CPU (where PyTorch raises a plain RuntimeError)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def batch_that_fits(step: Callable[[int], object], batch_size: int) -> int | None:
    """The largest of batch_size / 2, / 4, … for which `step(batch)` does not run out of memory; None where none is."""
    while batch_size > 1:
        batch_size //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            step(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        return batch_size
    return None
