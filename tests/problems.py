"""Initial-value problems with known solutions; every one depends on time, so that shifted nodes show."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """``dx/dt = field(t, x)`` on ``t_span`` with ``x(t0) = start`` and ``x(t1) = end``."""

    field: Callable[[Tensor, Tensor], Tensor]
    t_span: tuple[float, float]
    start: Tensor
    end: Tensor


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _exp(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64).exp().item()


PROBLEMS = {
    # x' = 2 t x: x = exp(t²)
    "growing": Problem(lambda t, x: 2 * t * x, (0.0, 1.0), _vector(1.0, -2.0), _vector(_exp(1.0), -2 * _exp(1.0))),
    # x' = -x + 2 cos t: x = cos t + sin t
    "forced": Problem(
        lambda t, x: -x + 2 * torch.cos(t),
        (0.0, 2.0),
        _vector(1.0),
        torch.cos(_vector(2.0)) + torch.sin(_vector(2.0)),
    ),
    # x' = -t x²: x = 2 / (1 + t²) with x(0) = 2
    "nonlinear": Problem(lambda t, x: -t * x * x, (0.0, 1.5), _vector(2.0), _vector(2 / (1 + 1.5**2))),
}


class Field(nn.Module):
    """A small time-dependent field with parameters, for ``ODEBlock`` and torchdyn; records the times it is called at."""

    def __init__(self, features: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(features, features)
        self.times: list[float] = []

    def forward(self, t: Tensor, x: Tensor, args: object = None) -> Tensor:
        self.times.append(float(t))
        return torch.tanh(self.linear(x)) * torch.cos(3 * t)
