"""Evaluation: a model's error on a test set, to be held against the figure published with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import data as zoo_data


@dataclass(frozen=True)
class Score:
    """`correct` of `total` images classified rightly; `error` in %."""

    correct: int
    total: int

    @property
    def error(self) -> float:
        """Error in %, rounded to 4 decimals."""
        return round(100.0 * (self.total - self.correct) / self.total, 4)


def count_correct(
    model: nn.Module,
    data: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    batch_size: int = 250,
    bf16: bool = False,
) -> Score:
    """Classify all of `data`, on the device on which model and data lie. The model is left in evaluation mode."""
    model.eval()
    device = data.images.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for images, labels in zoo_data.batches(data, batch_size, shuffle=False, drop_last=False):
            logits = model(zoo_data.normalize(images, mean, std))
            correct += (logits.argmax(dim=1) == labels).sum()
    return Score(int(correct.item()), len(data))
