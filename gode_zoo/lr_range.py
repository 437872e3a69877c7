"""A learning rate by a short range test.

    lr = find_lr(model, make_optimizer, batches, loss_of).lr

The rate rises from step to step, ς_s = ς_0 (ς_S / ς_0)^(s/S), until the loss explodes. With l_s the loss smoothed by an
exponential average, whose bias is corrected, the rate is a tenth of that at the smallest l_s: there the loss falls fast,
and a run of many steps stays stable.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3; the tenth is common practice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["LRRange", "find_lr"]


@dataclass(frozen=True)
class LRRange:
    """The curve of a range test: (rate, smoothed loss) of each step."""

    curve: list[tuple[float, float]]

    @property
    def lr(self) -> float:
        """The rate to train with, of two digits."""
        return float(f"{min(self.curve, key=lambda point: point[1])[0] / 10.0:.2g}")

    def to_csv(self) -> str:
        """A row a step, from which `from_csv` makes the same again."""
        return "lr,loss\n" + "".join(f"{lr!r},{loss!r}\n" for lr, loss in self.curve)

    @staticmethod
    def from_csv(text: str) -> LRRange:
        """Of what `to_csv` wrote."""
        return LRRange([(float(lr), float(loss)) for lr, loss in (line.split(",") for line in text.split()[1:])])


def find_lr(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module, float], torch.optim.Optimizer],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    *,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 50,
    on_step: Callable[[int], None] = lambda step: None,
) -> LRRange:
    """Try rising rates on a copy of the model; the model and the random state are left as they were.

    Args:
        model: at its start.
        make_optimizer: from a model and a rate; parameter groups may scale the rate by `lr_scale`.
        batches: at least `steps` of them.
        loss_of: from a model, images and labels.
        lowest: first rate.
        highest: last rate.
        steps: how many rates, evenly spaced in their logarithm.
        on_step: called with the number of steps made.

    Raises:
        ValueError: the loss is not finite at the lowest rate already.
    """
    copied = copy.deepcopy(model).train()
    optimizer = make_optimizer(copied, lowest)
    curve: list[tuple[float, float]] = []
    average, memory = 0.0, 0.9
    devices = sorted({p.device.index or 0 for p in copied.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        for step, (images, labels) in zip(range(steps), batches, strict=False):
            lr = lowest * (highest / lowest) ** (step / (steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            loss = loss_of(copied, images, labels)
            value = loss.item()
            if not math.isfinite(value):
                break
            average = memory * average + (1.0 - memory) * value
            smooth = average / (1.0 - memory ** (step + 1))
            curve.append((lr, smooth))
            if len(curve) > 5 and smooth > 3.0 * min(loss for _, loss in curve):
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            on_step(step + 1)
    if not curve:
        raise ValueError(
            "no learning rate can be found: the loss is NaN or infinite before the first step. Check the images and the "
            "weights, or give --lr"
        )
    return LRRange(curve)
