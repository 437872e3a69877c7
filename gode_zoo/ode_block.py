"""ODEBlock: a vector field, a solver, a time span and a way to get gradients, as one module ``x(t0) -> x(t1)``.

On a fixed grid every stage time is known when the block is built. The block then tabulates the field once, makes the
weights of all stages as one matrix product a layer before the loop, and loops in plain tensor code: no host
synchronisation, and it goes through ``torch.compile(fullgraph=True)``, ``torch.export``, ``torch.fx``, TorchScript and
CUDA-graph capture.

Shapes: x ``(B, …)``, S distinct stage times.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .kept_weights import KeptWeights
from .reversible import leapfrog_times, solve_reversible
from .solvers import Solution, Tableau, fixed_grid, get_solver, solve_adaptive, solve_fixed
from .splines import check_t_span

__all__ = ["SENSITIVITIES", "ODEBlock"]

SENSITIVITIES = ("autograd", "checkpoint", "reversible", "adjoint")

_STATES_A_STAGE = 4  # what autograd keeps of a stage of two convolutions: both convolutions' inputs, both norms' inputs


class ODEBlock(nn.Module):
    """Integrates ``dx/dt = field(t, x)`` over ``t_span``.

    Args:
        field: a vector field of this package, or any module with ``forward(t, x)``.
        t_span: (t0, t1), inside the span of the field's basis where it has one.
        solver: euler, midpoint, heun, rk4, leapfrog (fixed grid), dopri5 or tsit5 (adaptive).
        step_size: step of a fixed grid (the last one may be shorter) …
        num_steps: … or its number of steps. One of the two for a fixed-grid solver, neither for an adaptive one.
        rtol: relative tolerance of an adaptive solver, 1e-3 where not given. Not for a fixed grid.
        atol: absolute tolerance of an adaptive solver, 1e-3 where not given. Not for a fixed grid.
        sensitivity: how gradients are made. ``"autograd"`` through every step; ``"checkpoint"``, the same gradients,
            with memory that grows with the square root of the steps (fixed grid); ``"reversible"``, the same gradients
            to rounding with constant memory (leapfrog); ``"adjoint"``, the continuous adjoint, with constant memory
            (adaptive solvers; on a fixed grid its gradients are wrong by the order of the step, so it warns).

    Raises:
        ValueError: on a value outside these limits, or values that cannot be right together.
    """

    fixed: Final[bool]
    leaping: Final[bool]
    tabulated: Final[bool]
    table: Tensor
    stages: list[list[float]]
    weights: list[float]
    step_sizes: list[float]
    stage_index: list[list[int]]

    def __init__(
        self,
        field: nn.Module,
        t_span: Sequence[float] = (0.0, 1.0),
        solver: str = "euler",
        step_size: float | None = None,
        num_steps: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        sensitivity: str = "autograd",
    ) -> None:
        super().__init__()
        self.t_span = check_t_span(t_span)
        self.solver = solver
        tableau = get_solver(solver)
        basis = getattr(field, "basis", None)
        if basis is not None and not (basis.t_span[0] <= self.t_span[0] and self.t_span[1] <= basis.t_span[1]):
            raise ValueError(
                f"t_span={self.t_span} leaves the span {basis.t_span} of the field's basis: build the basis with "
                f"t_span={self.t_span}"
            )
        if sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity={sensitivity!r}: must be one of {', '.join(SENSITIVITIES)}")
        self.field = field
        self.fixed = not tableau.adaptive
        self.leaping = tableau.carries_slope
        self.sensitivity = sensitivity
        self.tabulated = self.fixed and hasattr(field, "tabulate")
        if self.fixed:
            if rtol is not None or atol is not None:
                raise ValueError(
                    f"rtol={rtol}, atol={atol} with solver={solver!r}, which steps on a fixed grid: drop them, or use "
                    "dopri5 or tsit5"
                )
            self.grid = fixed_grid(self.t_span, step_size, num_steps)
            if sensitivity == "adjoint":
                warnings.warn(
                    f'sensitivity="adjoint" with solver={solver!r}: on a fixed grid the adjoint\'s gradients are not '
                    'those of the discrete solve (34 % off for Euler in a trial); use "checkpoint" to save memory',
                    UserWarning,
                    stacklevel=2,
                )
        else:
            if step_size is not None or num_steps is not None:
                raise ValueError(
                    f"step_size={step_size}, num_steps={num_steps} with solver={solver!r}, which chooses its own steps: "
                    "drop them, or use euler, midpoint, heun, rk4 or leapfrog"
                )
            self.grid = ()
        if sensitivity == "checkpoint" and (self.leaping or not self.fixed):
            instead = '"reversible"' if self.leaping else '"adjoint"'
            raise ValueError(
                f'sensitivity="checkpoint" with solver={solver!r}: it needs a fixed grid without a carried slope (euler, '
                f'midpoint, heun, rk4); use {instead} or "autograd"'
            )
        if sensitivity == "reversible" and not self.leaping:
            raise ValueError(
                f'sensitivity="reversible" with solver={solver!r}: it needs solver="leapfrog"; use "checkpoint" (euler, '
                'midpoint, heun, rk4) or "adjoint" (dopri5, tsit5)'
            )
        self.rtol = _tolerance("rtol", rtol)
        self.atol = _tolerance("atol", atol)
        self.checkpointing = sensitivity in ("checkpoint", "reversible")
        self.stages = [list(row) for row in tableau.a]
        self.weights = list(tableau.b)
        self.step_sizes, self.stage_index, self.times = _stage_times(self.grid, tableau)
        self._kept = KeptWeights()
        self.register_buffer("table", self._make_table(), persistent=False)

    def _make_table(self) -> Tensor:
        # On the CPU in float64 whatever the default device is: a block built on meta has its table all the same.
        with torch.device("cpu"):
            if not self.tabulated:
                return torch.zeros(0)
            with torch.no_grad():
                return self.field.tabulate(torch.tensor(self.times, dtype=torch.float64)).float()  # type: ignore[operator]

    def _apply(self, fn: Any, recurse: bool = True) -> "ODEBlock":
        # The table is made anew in at least float32, so that neither a cast nor to_empty() rounds or loses it.
        super()._apply(fn, recurse)
        if self.tabulated:
            device, dtype = self.table.device, torch.promote_types(self.table.dtype, torch.float32)
            times = torch.tensor(self.times, dtype=torch.float64)
            self.table = self.field.tabulate(times).to(device=device, dtype=dtype)  # type: ignore[operator]
        return self

    @torch.jit.ignore
    def set_num_steps(self, num_steps: int) -> None:
        """Solve on another grid from here on, of so many steps of equal size, with the weights as they are.

        Raises:
            ValueError: if the solver is adaptive, or num_steps below 1.
        """
        if not self.fixed:
            raise ValueError(f"num_steps={num_steps} with solver={self.solver!r}, which chooses its own steps")
        self.grid = fixed_grid(self.t_span, None, num_steps)
        self.step_sizes, self.stage_index, self.times = _stage_times(self.grid, get_solver(self.solver))
        self._apply(lambda tensor: tensor)  # makes the table anew

    @torch.jit.ignore
    def set_checkpointing(self, enable: bool = True) -> None:
        """Compute segments of the solve again in the backward pass (leapfrog: undo its steps), or not.

        Gradients stay the same.

        Raises:
            ValueError: if the solver is adaptive or the sensitivity is the adjoint.
        """
        if enable and (not self.fixed or self.sensitivity == "adjoint"):
            raise ValueError(
                f"checkpointing with solver={self.solver!r}, sensitivity={self.sensitivity!r}: it needs a fixed grid "
                '(euler, midpoint, heun, rk4) and sensitivity="autograd"'
            )
        self.checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span: ``(B, …)`` to the same shape."""
        if self.tabulated:
            return self._solve_tabulated(x)
        return self._solve_called(x)

    def _solve_tabulated(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.sensitivity == "adjoint":
                return _solve_adjoint(self, x)
            if self.checkpointing and torch.is_grad_enabled():
                return self._solve_reversible(x) if self.leaping else self._solve_checkpointed(x)
            start, kept = self._kept.of(self.field, self.table, x)
            end = self._run(start, kept)
            return end if start is x else end.contiguous()
        return self._run(x, self.field.stage_weights(self.table))  # type: ignore[operator]

    def _run(self, x: Tensor, weights: list[list[Tensor]]) -> Tensor:
        """All steps."""
        if self.leaping:
            return self._leap(x, weights)
        return self._steps(x, weights, self.step_sizes, self.stage_index)

    def _steps(
        self, x: Tensor, weights: list[list[Tensor]], step_sizes: list[float], stage_index: list[list[int]]
    ) -> Tensor:
        """Steps of these sizes, whose stages have the weights of these numbers."""
        for n, step in enumerate(step_sizes):
            slopes: list[Tensor] = []
            for i, row in enumerate(self.stages):
                y = x
                for j, a in enumerate(row):
                    if a != 0.0:
                        y = torch.add(y, slopes[j], alpha=step * a)
                slopes.append(self.field.forward_stage(y, weights, stage_index[n][i]))  # type: ignore[operator]
            for i, b in enumerate(self.weights):
                if b != 0.0:
                    x = torch.add(x, slopes[i], alpha=step * b)
        return x

    def _leap(self, x: Tensor, weights: list[list[Tensor]]) -> Tensor:
        """The steps of ``reversible.leapfrog``, as TorchScript takes them."""
        v = self.field.forward_stage(x, weights, 0).to(x.dtype)  # type: ignore[operator]
        for n, step in enumerate(self.step_sizes):
            y = torch.add(x, v, alpha=step / 2)
            v = 2 * self.field.forward_stage(y, weights, n + 1) - v  # type: ignore[operator]
            x = torch.add(y, v, alpha=step / 2)
        return x

    @torch.jit.unused
    def _solve_checkpointed(self, x: Tensor) -> Tensor:
        """Segments of the solve, weights included, each but the last computed again in the backward pass."""
        first = 0
        lengths = _segments(len(self.step_sizes), _STATES_A_STAGE * len(self.stages))
        for number, length in enumerate(lengths, 1):
            sizes, index = self.step_sizes[first : first + length], self.stage_index[first : first + length]
            segment = functools.partial(self._segment, step_sizes=sizes, stage_index=index)
            # The last is the first that the backward pass comes to.
            x = segment(x) if number == len(lengths) else checkpoint(segment, x, use_reentrant=False)
            first += length
        return x

    @torch.jit.unused
    def _segment(self, x: Tensor, step_sizes: list[float], stage_index: list[list[int]]) -> Tensor:
        """Steps with weights of their own, so that no longer solve's weights are kept."""
        used = [stage for stages in stage_index for stage in stages]
        first = min(used)
        weights = self.field.stage_weights(self.table[first : max(used) + 1])  # type: ignore[operator]
        return self._steps(x, weights, step_sizes, [[stage - first for stage in stages] for stages in stage_index])

    @torch.jit.unused
    def _solve_reversible(self, x: Tensor) -> Tensor:
        """The leapfrog with weights made one time after another, forwards and backwards."""

        def slope(k: int, y: Tensor) -> Tensor:
            return self.field.forward_stage(y, self.field.stage_weights(self.table[k : k + 1]), 0)  # type: ignore[operator]

        return solve_reversible(slope, x, self.step_sizes, list(self.field.parameters()))

    @torch.jit.unused
    def _solve_called(self, x: Tensor) -> Tensor:
        if self.sensitivity == "adjoint":
            return _solve_adjoint(self, x)
        if self.leaping and self.checkpointing:
            times = [
                torch.tensor(t, dtype=torch.promote_types(x.dtype, torch.float32)).to(x.device) for t in self.times
            ]
            parameters = list(self.field.parameters())
            return solve_reversible(lambda k, y: self.field(times[k], y), x, self.step_sizes, parameters)
        return self.solve(x).x

    @torch.jit.unused
    def solve(self, x: Tensor) -> Solution:
        """The same solve by calling ``field(t, x)``, with the number of function evaluations that it took."""
        return self._integrate(self.field, x, self.t_span)

    @torch.jit.unused
    def _integrate(self, field: Any, x: Tensor, t_span: tuple[float, float]) -> Solution:
        """Integrate any field over ``t_span``, the block's own or backwards, with the block's solver."""
        tableau = get_solver(self.solver)
        if self.fixed:
            grid = self.grid if t_span == self.t_span else self.grid[::-1]
            return solve_fixed(field, x, grid, tableau)
        return solve_adaptive(field, x, t_span, tableau, self.rtol, self.atol)

    def extra_repr(self) -> str:
        how = f"steps={len(self.step_sizes)}" if self.fixed else f"rtol={self.rtol}, atol={self.atol}"
        return f"t_span={self.t_span}, solver={self.solver!r}, {how}, sensitivity={self.sensitivity!r}"


@torch.no_grad()
def solutions(model: nn.Module, x: Tensor) -> list[Solution]:
    """The solve of each of the model's ODE blocks in a forward pass of ``x``, in their order, with its NFE."""
    found: list[Solution] = []
    hooks = [
        block.register_forward_pre_hook(lambda block, inputs: found.append(block.solve(inputs[0])))
        for block in model.modules()
        if isinstance(block, ODEBlock)
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _tolerance(name: str, value: float | None) -> float:
    if value is None:
        return 1e-3
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: must be positive and finite")
    return float(value)


def _stage_times(grid: Sequence[float], tableau: Tableau) -> tuple[list[float], list[list[int]], list[float]]:
    """Step sizes, the number of each stage's time, and the distinct times those numbers stand for."""
    if tableau.carries_slope:
        times = leapfrog_times(grid)
        return [t1 - t0 for t0, t1 in itertools.pairwise(grid)], [[n] for n in range(1, len(times))], times
    numbers: dict[float, int] = {}
    sizes, index = [], []
    for t0, t1 in itertools.pairwise(grid):
        times = [t1 if c == 1.0 else t0 + c * (t1 - t0) for c in tableau.c]
        index.append([numbers.setdefault(time, len(numbers)) for time in times])
        sizes.append(t1 - t0)
    return sizes, index, list(numbers)


def _segments(steps: int, states: int) -> list[int]:
    """Lengths of segments whose peak memory is least, where each keeps its input and a step ``states`` of them.

    While segment i (from 1) is gone through backwards, i inputs are held and ``states`` for each of its steps; so the later
    ones, which come first, have less room. Their sum is the square root of the steps, in size.
    """
    for peak in itertools.count(states + 1):
        lengths = [(peak - i) // states for i in range(1, peak - states + 1)]
        if sum(lengths) >= steps:
            ends = [min(end, steps) for end in itertools.accumulate(lengths)]
            return [end - start for start, end in itertools.pairwise([0, *ends]) if end > start]
    raise AssertionError("unreachable")


def _solve_adjoint(block: ODEBlock, x: Tensor) -> Tensor:
    parameters = [p for p in block.field.parameters() if p.requires_grad]
    if not torch.is_grad_enabled() or not (parameters or x.requires_grad):
        return block.solve(x).x
    return _Adjoint.apply(block, x, *parameters)


class _Adjoint(torch.autograd.Function):
    """The continuous adjoint of Chen et al. (2018), algorithm 1: x, a = ∂L/∂x and ∂L/∂θ solved backwards together."""

    @staticmethod
    def forward(ctx: Any, block: ODEBlock, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.block = block
        solution = block._integrate(block.field, x, block.t_span).x
        ctx.save_for_backward(solution, *parameters)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        block: ODEBlock = ctx.block
        solution, *parameters = ctx.saved_tensors
        sizes = [solution.numel(), solution.numel(), *(p.numel() for p in parameters)]

        def augmented(t: Tensor, state: Tensor) -> Tensor:
            x, adjoint = (part.view_as(solution) for part in state.split(sizes)[:2])
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                slope = block.field(t, x)
                pulled = torch.autograd.grad(slope, (x, *parameters), adjoint, allow_unused=True)
            parts = [
                torch.zeros_like(target) if g is None else g for g, target in zip(pulled, (x, *parameters), strict=True)
            ]
            return torch.cat([slope.detach().flatten(), *(-part.flatten() for part in parts)])

        zeros = [torch.zeros_like(p).flatten() for p in parameters]
        state = torch.cat([solution.flatten(), grads[0].flatten(), *zeros])
        final = block._integrate(augmented, state, block.t_span[::-1]).x.split(sizes)[1:]
        return None, *(part.view_as(target) for part, target in zip(final, (solution, *parameters), strict=True))
