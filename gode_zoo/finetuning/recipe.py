"""What decides a fine-tuning run: a recipe, and what only fine-tuning has. Written to the run's recipe.yaml."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..mixed_precision import computes_bf16
from ..recipes import Recipe

__all__ = ["FinetuneRecipe", "automatic_batch_size", "automatic_ema_decay", "automatic_precision"]


@dataclass(frozen=True)
class FinetuneRecipe(Recipe):
    """A recipe whose model starts from weights and whose data are anyone's.

    `dataset` is the data set's name alone, without the folders it lies in; `epochs` is the most there may be.
    """

    finetuned_from: str | None = None
    freeze: str = "none"
    layer_decay: float = 1.0  # each layer below the head learns by this factor more slowly than the one above
    balanced: bool = False  # draw each class equally often
    patience: int = 0  # epochs without a better validation error after which it ends; 0 for never
    image_size: int = 32


def automatic_batch_size(num_images: int) -> int:
    """A power of two between 8 and 64, near a tenth of the images: small sets need steps more than large batches."""
    batch = 8
    while batch < 64 and batch * 2 * 10 <= num_images:
        batch *= 2
    return batch


def automatic_ema_decay(num_steps: int) -> float:
    """The moving average looks back over a twentieth of the run, 5 to 2000 steps."""
    return round(1.0 - 1.0 / min(max(num_steps / 20, 5), 2000), 6)


def automatic_precision(device: torch.device) -> str:
    """bf16 where the chip computes in it, else none (float32)."""
    return "bf16" if computes_bf16(device) else "none"
