"""A learning rate by a short range test.

    lr = find_lr(model, make_optimizer, batches, loss_of, probe).lr

The rate rises from step to step, η_s = η_0 (η_S / η_0)^(s/S), until the loss explodes. The loss is that of the same images
each time, so that the curve has no noise of small batches. The rate taken is a third of that at the smallest loss: there it
still fell, and a run of many steps stays stable.

Source: Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3; the fixed images and
the third are ours, settled on digits and MNIST.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["LRRange", "find_lr"]

_PART = 1.0 / 3.0  # of the rate at the smallest loss


@dataclass(frozen=True)
class LRRange:
    """The curve of a range test: (rate, loss after the step) of each step."""

    curve: list[tuple[float, float]]

    @property
    def lr(self) -> float:
        """The rate to train with, of two digits."""
        return float(f"{min(self.curve, key=lambda point: point[1])[0] * _PART:.2g}")

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
    probe: tuple[Tensor, Tensor],
    *,
    lowest: float = 1e-4,
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
        probe: images and labels on which the loss is watched.
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
    devices = sorted({p.device.index or 0 for p in copied.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        with torch.no_grad():
            start = loss_of(copied, *probe).item()
        for step, (images, labels) in zip(range(steps), batches, strict=False):
            lr = lowest * (highest / lowest) ** (step / (steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            loss_of(copied, images, labels).backward()
            optimizer.step()
            with torch.no_grad():
                loss = loss_of(copied, *probe).item()
            if not math.isfinite(loss):
                break
            curve.append((lr, loss))
            on_step(step + 1)
            if loss > start + abs(start) + 1.0:  # a log-likelihood may be negative
                break
    if not curve:
        raise ValueError(
            "no learning rate can be found: the loss is NaN or infinite before the first step. Check the images and the "
            "weights, or give --lr"
        )
    return LRRange(curve)
