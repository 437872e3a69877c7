"""The peers: other ways to run the block of a GODE model, each a module `x(t0) -> x(t1)` with weights copied from it.

All take the same Euler steps, so all compute the same network; `check_equal` holds each to 1e-5 before it is timed.

    ours, ours baked          the block as it is, and after `surgery.bake`
    floor                     the same convolutions and norms, with every kernel made beforehand
    authors' formulation      written anew from its description, see `AuthorsBlock`
    torchdyn, torchdiffeq,    our field, called at every step with t, inside their solvers
    torchdiffeq adjoint,
    torchode
    diffrax                   field and solver in JAX, compiled by XLA; inference alone

Shapes: x (B, C, H, W).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bake import BakedBlock
from ..ode_block import ODEBlock

__all__ = ["FORWARD_ONLY", "PEERS", "AuthorsBlock", "CalledBlock", "FixedBlock", "check_equal"]

TOLERANCE = 1e-5


class AuthorsBlock(nn.Module):
    """The block evaluated as the authors' code does, written anew from its description.

    Basis values come from a table of spacing 1e-3, looked up with a t that is read on the host; every call multiplies all
    m coefficients of each convolution; torchdiffeq steps.
    """

    def __init__(self, block: ODEBlock) -> None:
        super().__init__()
        import torchdiffeq

        self.solve = torchdiffeq.odeint
        field: Any = block.field
        self.field: Any = field
        self.t_span, self.step_size = block.t_span, block.step_sizes[0]
        t0, t1 = block.t_span
        times = torch.linspace(t0, t1, round((t1 - t0) * 1000) + 1, dtype=torch.float64)
        with torch.no_grad():
            values = field.basis(times.to(field.basis.knots.device)).float()
        self.register_buffer("values", values, persistent=False)

    def slope(self, t: Tensor, x: Tensor) -> Tensor:
        """The field at `t`."""
        row = self.get_buffer("values")[round((t.item() - self.t_span[0]) * 1000)]
        for norm, conv in zip(self.field.norms, self.field.convs, strict=True):
            x = F.conv2d(torch.relu(norm(x)), (conv.coeffs * row).sum(dim=-1), padding=1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span."""
        times = torch.tensor(self.t_span, device=x.device)
        return self.solve(self.slope, x, times, method="euler", options={"step_size": self.step_size})[-1]


class FixedBlock(nn.Module):
    """The same Euler steps with every kernel made beforehand, a parameter each: what convolutions and norms alone cost."""

    def __init__(self, block: ODEBlock) -> None:
        super().__init__()
        field: Any = block.field
        self.norms, self.step_sizes = field.norms, block.step_sizes
        with torch.no_grad():
            kernels = field.stage_weights(block.table)
        self.kernels = [[nn.Parameter(kernel.clone()) for kernel in layer] for layer in kernels]
        self.all = nn.ParameterList(kernel for layer in self.kernels for kernel in layer)

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span."""
        for n, step in enumerate(self.step_sizes):
            y = x
            for norm, kernels in zip(self.norms, self.kernels, strict=True):
                y = F.conv2d(torch.relu(norm(y)), kernels[n], padding=1)
            x = torch.add(x, y, alpha=step)
        return x


class CalledBlock(nn.Module):
    """Our field inside another library's solver, `solve(field, x, t_span, step_size)`."""

    def __init__(self, block: ODEBlock, solve: Callable[..., Tensor]) -> None:
        super().__init__()
        self.field, self.solve = block.field, solve
        self.t_span, self.step_size = block.t_span, block.step_sizes[0]

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span."""
        return self.solve(self.field, x, self.t_span, self.step_size)


def _torchdyn(block: ODEBlock) -> nn.Module:
    from torchdyn.core import NeuralODE

    ode = NeuralODE(block.field, solver="euler", sensitivity="autograd")
    steps = torch.linspace(*block.t_span, len(block.step_sizes) + 1, device=block.table.device)
    made = CalledBlock(block, lambda field, x, *_: ode(x, steps)[1][-1])
    made.steps = steps
    return made


def _torchdiffeq(block: ODEBlock) -> nn.Module:
    import torchdiffeq

    return CalledBlock(block, _with_torchdiffeq(torchdiffeq.odeint))


def _torchdiffeq_adjoint(block: ODEBlock) -> nn.Module:
    import torchdiffeq

    return CalledBlock(block, _with_torchdiffeq(torchdiffeq.odeint_adjoint))


def _with_torchdiffeq(odeint: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def solve(field: nn.Module, x: Tensor, t_span: tuple[float, float], step: float) -> Tensor:
        times = torch.tensor(t_span, device=x.device)
        return odeint(field, x, times, method="euler", options={"step_size": step})[-1]

    return solve


def _torchode(block: ODEBlock) -> nn.Module:
    import torchode

    shape = torch.Size()

    def slope(t: Tensor, flat: Tensor) -> Tensor:
        # torchode gives each image a time of its own; on one grid for all they are equal.
        return block.field(t[0], flat.view(shape)).flatten(1)

    solver = torchode.AutoDiffAdjoint(torchode.Euler(torchode.ODETerm(slope)), torchode.FixedStepController())

    def solve(field: nn.Module, x: Tensor, t_span: tuple[float, float], step: float) -> Tensor:
        nonlocal shape
        shape = x.shape
        start, end, sizes = (torch.full((len(x),), value, device=x.device) for value in (*t_span, step))
        problem = torchode.InitialValueProblem(y0=x.flatten(1), t_start=start, t_end=end)
        return solver.solve(problem, dt0=sizes).ys[:, -1].view(shape)

    return CalledBlock(block, solve)


def _diffrax(block: ODEBlock) -> nn.Module:
    from .jax_peer import make_solve

    return CalledBlock(block, make_solve(block))


PEERS: dict[str, Callable[[ODEBlock], nn.Module]] = {
    "ours": lambda block: block,
    "ours baked": BakedBlock,
    "floor": FixedBlock,
    "authors' formulation": AuthorsBlock,
    "torchdyn": _torchdyn,
    "torchdiffeq": _torchdiffeq,
    "torchdiffeq adjoint": _torchdiffeq_adjoint,
    "torchode": _torchode,
    "diffrax": _diffrax,
}
FORWARD_ONLY = ("ours baked", "diffrax")


def make(name: str, block: ODEBlock) -> nn.Module:
    """A peer with weights of its own, copied from `block`.

    Raises:
        ImportError: its library is not installed.
    """
    return PEERS[name](copy.deepcopy(block)).to(block.table.device)


def check_equal(name: str, peer: nn.Module, block: nn.Module, x: Tensor) -> float:
    """The largest difference of the peer's states from the block's, relative to 1 + their size.

    Raises:
        RuntimeError: if it is above 1e-5: what is not the same network is not timed.
    """
    with torch.no_grad():
        ours, theirs = block(x), peer(x)
    difference = float(((theirs - ours).abs() / (1 + ours.abs())).max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{name}: not the same network, its states differ by {difference:.3g} (at most {TOLERANCE})")
    return difference
