"""How fast a model is, beside other ways to run the same network: medians and ratios from interleaved repeats in one process.

    for row in run(repeats=20): print(row)

Compared, always on the same machine in the same minutes:
    inference, batch 1      against the same weights evaluated as the authors' code does (`AuthorsBlock`)
    inference, batch 1      against the floor: the same convolutions with weights fixed beforehand (`FixedBlock`)
    training step           against as many plain residual blocks, with weights of their own, as there are Euler steps
    import and creation     in a fresh process, in seconds
"""

from __future__ import annotations

import copy
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .models.resnet import ResidualStack
from .ode_block import ODEBlock

__all__ = ["AuthorsBlock", "FixedBlock", "Row", "run"]


@dataclass(frozen=True)
class Row:
    """One comparison: medians in seconds, and the median, lower and upper quartile of peer / ours over the repeats."""

    what: str
    peer: str
    ours_s: float
    peer_s: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None


class AuthorsBlock(nn.Module):
    """The block of a model evaluated as the authors' code does, written anew from its description.

    Basis values come from a table of spacing 1e-3, looked up with a t that is read on the host; every call multiplies all
    m coefficients of each convolution; torchdiffeq steps. Weights are shared with `block`.
    """

    def __init__(self, block: ODEBlock) -> None:
        super().__init__()
        self.field: Any = block.field
        self.t_span, self.step_size = block.t_span, block.step_sizes[0]
        t0, t1 = block.t_span
        times = torch.linspace(t0, t1, round((t1 - t0) * 1000) + 1, dtype=torch.float64)
        with torch.no_grad():
            self.register_buffer("values", self.field.basis(times).float(), persistent=False)  # type: ignore[operator]

    def slope(self, t: Tensor, x: Tensor) -> Tensor:
        """The field at `t`: (B, C, H, W) to the same."""
        row = self.get_buffer("values")[round((t.item() - self.t_span[0]) * 1000)]
        for norm, conv in zip(self.field.norms, self.field.convs, strict=True):
            x = F.conv2d(torch.relu(norm(x)), (conv.coeffs * row).sum(dim=-1), padding=1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span."""
        import torchdiffeq

        times = torch.tensor(self.t_span, device=x.device)
        return torchdiffeq.odeint(self.slope, x, times, method="euler", options={"step_size": self.step_size})[-1]


class FixedBlock(nn.Module):
    """The same Euler steps with every weight made beforehand: what the convolutions and norms alone cost."""

    def __init__(self, block: ODEBlock) -> None:
        super().__init__()
        self.field: Any = block.field
        self.step_sizes = block.step_sizes
        with torch.no_grad():
            self.weights = [list(w) for w in self.field.stage_weights(block.table)]  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span."""
        for n, step in enumerate(self.step_sizes):
            y = x
            for norm, weights in zip(self.field.norms, self.weights, strict=True):
                y = F.conv2d(torch.relu(norm(y)), weights[n], padding=1)
            x = torch.add(x, y, alpha=step)
        return x


def run(
    model: str = "gode_cifar10_m8", *, repeats: int = 20, batch_size: int = 128, device: str = "cpu"
) -> Iterator[Row]:
    """Measure, yielding each comparison when it is done.

    Args:
        model: a GODE model with a fixed grid of Euler steps.
        repeats: interleaved repeats of an inference; a training step is repeated a quarter as often.
        batch_size: of the training step.
        device: where to run.

    Raises:
        ValueError: repeats or batch size below 1, or a model that is not such a one.
        ImportError: torchdiffeq, the authors' solver, is not installed.
    """
    if repeats < 1 or batch_size < 1:
        raise ValueError(f"repeats={repeats}, batch_size={batch_size}: both must be 1 or more")
    torch.manual_seed(0)
    ours: Any = timm.create_model(model).to(device).eval()
    block = getattr(ours, "block", None)
    if not isinstance(block, ODEBlock) or block.solver != "euler" or not hasattr(block.field, "convs"):
        raise ValueError(
            f"model={model!r}: has no spline block of Euler steps: give a gode_* model with its own solver"
        )
    shape = ours.pretrained_cfg["input_size"]

    image = torch.randn(1, *shape, device=device)
    for peer, kind in (("authors' formulation", AuthorsBlock), ("floor: fixed weights", FixedBlock)):
        other = _with_block(ours, kind(block))
        with torch.inference_mode():
            if not torch.allclose(ours(image), other(image), atol=1e-5, rtol=1e-5):
                raise RuntimeError(f"{peer}: not the same network: the outputs differ by more than 1e-5")
            forward = functools.partial(ours, image)
            yield _compare("inference, batch 1", peer, forward, functools.partial(other, image), repeats, device)

    images = torch.randn(batch_size, *shape, device=device)
    labels = torch.randint(0, ours.num_classes, (batch_size,), device=device)
    stack = ResidualStack(len(block.step_sizes), int(ours.num_features)).to(device)
    plain = _with_block(ours, stack)
    mine, theirs = (_training_step(m.train(), images, labels) for m in (copy.deepcopy(ours), plain))
    what = f"training step, batch {batch_size}"
    yield _compare(what, f"{len(block.step_sizes)} plain residual blocks", mine, theirs, max(repeats // 4, 1), device)

    code = f"import gode_zoo, timm; timm.create_model({model!r})"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    yield Row("import and creation", "-", statistics.median(times), None, None, None, None)


def _with_block(model: Any, block: nn.Module) -> Any:
    other = copy.copy(model)  # shares stem and head
    other._modules = dict(model._modules)
    other.block = block
    return other


def _training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _compare(
    what: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int, device: str
) -> Row:
    """Repeats of both in turn, the first of each not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for n in range(repeats + 1):
        for function, taken in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            function()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize()
            if n > 0:
                taken.append(time.perf_counter() - start)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    low, middle, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
    return Row(what, peer, statistics.median(times[0]), statistics.median(times[1]), middle, low, high)
