"""Reversible solve: gradients that are exact to rounding with memory that does not grow with the number of steps.

The asynchronous leapfrog carries a velocity v beside the state x. A step of size h from ``t_n``::

    y = x_n + h/2 v_n,    v_{n+1} = 2 f(t_n + h/2, y) − v_n,    x_{n+1} = y + h/2 v_{n+1},    v_0 = f(t_0, x_0)

is undone by the same formulas with −h, so that the backward pass makes the states again from the last one, instead of
keeping them. With ``v_n = f(t_n, x_n)`` a step is one of the midpoint rule; the method is of second order and calls the
field once a step, and once at the start.

Source: Mutze, "An asynchronous leap-frog method" (2008); Zhuang, Dvornek, Tatikonda and Duncan, "MALI: a memory efficient
and reverse accurate integrator for Neural ODEs" (2021), algorithms 2 and 3 without damping.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["leapfrog", "leapfrog_times", "solve_reversible"]

Slope = Callable[[int, Tensor], Tensor]


def leapfrog_times(grid: Sequence[float]) -> list[float]:
    """The times of its calls: the start, then the middle of each step; ``(n + 1)`` of n steps."""
    return [grid[0], *((t0 + t1) / 2 for t0, t1 in itertools.pairwise(grid))]


def leapfrog(slope: Slope, x: Tensor, step_sizes: Sequence[float]) -> tuple[Tensor, Tensor]:
    """State and velocity after all steps; ``slope(k, x)`` is the field at time number k of ``leapfrog_times``."""
    v = slope(0, x).to(x.dtype)
    for k, h in enumerate(step_sizes, 1):
        y = torch.add(x, v, alpha=h / 2)
        v = 2 * slope(k, y) - v
        x = torch.add(y, v, alpha=h / 2)
    return x, v


def solve_reversible(slope: Slope, x: Tensor, step_sizes: Sequence[float], parameters: Sequence[Tensor]) -> Tensor:
    """The state after all steps, with gradients for ``x`` and ``parameters``, which must be all that ``slope`` depends on."""
    needed = [p for p in parameters if p.requires_grad]
    if not torch.is_grad_enabled() or not (needed or x.requires_grad):
        return leapfrog(slope, x, step_sizes)[0]
    return _Reversible.apply(slope, tuple(step_sizes), x, *needed)


class _Reversible(torch.autograd.Function):
    """Keeps the last state and velocity alone; the backward pass undoes the steps one by one."""

    @staticmethod
    def forward(ctx: Any, slope: Slope, step_sizes: tuple[float, ...], x: Tensor, *parameters: Tensor) -> Tensor:
        device = x.device.type
        ctx.slope, ctx.step_sizes = slope, step_sizes
        # The backward pass must compute the same slopes, so in the same precision.
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        end, velocity = leapfrog(slope, x, step_sizes)
        ctx.save_for_backward(end, velocity, *parameters)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, v, *parameters = ctx.saved_tensors
        grad_x, grad_v = grads[0], torch.zeros_like(v)
        sums: list[Tensor | None] = [None] * len(parameters)

        def pull(k: int, y: Tensor, adjoint: Tensor) -> tuple[Tensor, Tensor]:
            """The slope at y, and the adjoint pulled through it to y; the parameters' share is added up."""
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                y = y.detach().requires_grad_()
                slope = ctx.slope(k, y)
            pulled = torch.autograd.grad(slope, (y, *parameters), adjoint.to(slope.dtype), allow_unused=True)
            for i, share in enumerate(pulled[1:]):
                before = sums[i]
                sums[i] = share if before is None or share is None else before.add_(share)
            return slope.detach(), torch.zeros_like(y) if pulled[0] is None else pulled[0]

        for k in range(len(ctx.step_sizes), 0, -1):
            h = ctx.step_sizes[k - 1]
            y = torch.add(x, v, alpha=-h / 2)
            grad_v = torch.add(grad_v, grad_x, alpha=h / 2)
            slope, pulled = pull(k, y, 2 * grad_v)
            grad_x = grad_x + pulled
            grad_v = torch.add(-grad_v, grad_x, alpha=h / 2)
            v = 2 * slope - v
            x = torch.add(y, v, alpha=-h / 2)
        _, pulled = pull(0, x, grad_v)
        return None, None, grad_x + pulled, *sums
