"""torchdyn: the fields of this package inside ``torchdyn``, and ``NeuralODE`` with the faults of torchdyn 1.0.6 mended.

This is the one module that imports torchdyn (which takes seconds, so ``import gode_zoo`` does not import this one).
A field of ``gode_zoo.fields`` goes into ``torchdyn.core.NeuralODE`` as it is. ``NeuralODE`` here is a subclass of that
class with the same state dict and the same result ``(t_eval, solution)``, for ``dx/dt = f(t, x)`` with real time
dependence. What upstream gets wrong there, and what happens here (``tests/test_torchdyn.py`` asserts both sides):

===================================  ===================================================  ==========================
fault of ``torchdyn.core``           consequence                                          here
===================================  ===================================================  ==========================
rk4 takes c = (0, ½, ½) for stages   first order on time-dependent fields                 mended, order 4
  2 to 4, not (½, ½, 1)
tableaus are made in float32         float64 solves stop converging near 1e-8             mended
``vf_params`` is a non-leaf tensor   ``copy.deepcopy``, pickle and timm's EMA fail        mended, made when read
adjoint asks for every parameter     raises on frozen parameters, and where one is        mended
                                     not used
interpolated adjoint permutes the    raises unless the state is 2-D; returns the          mended, Hermite, any shape
  state as 2-D                       solver's own times instead of ``t_span``
``args`` stop at the solver,         accepted and ignored                                 mended
  ``save_at`` at the adjoint
a span that runs backwards           ``t_eval`` has the wrong sign; adjoint wrong         mended
adaptive loop lands by rounding      may lose the last time, or not end on NaN            mended, lands exactly
default span ``linspace(0, 1, 2)``   one step of a fixed-step solver                      refused, ask for a grid
implicit Euler uses f(t, x_{n+1})    wrong on time-dependent fields; gradients are zero   refused
multiple shooting restarts at t = 0  wrong on time-dependent fields                       refused
===================================  ===================================================  ==========================

Shapes: x ``(B, …)``; t_span ``(T,)``; solution ``(T, B, …)``; B-spline coefficients of ``GalLinear`` ``(P, m, 1)``.

Source: Poli et al., "TorchDyn: A Neural Differential Equations Library" (2020); the adjoint is algorithm 1 of Chen et
al., "Neural Ordinary Differential Equations" (2018); the interpolated adjoint is that of Kim et al., "Stiff Neural
Ordinary Differential Equations" (2021), with cubic Hermite interpolation through the states and slopes of the solve.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torchdyn.core
from torch import Tensor, nn
from torchdyn.numerics.solvers import ode as upstream
from torchdyn.numerics.solvers.templates import DiffEqSolver, MultipleShootingDiffeqSolver
from torchdyn.numerics.utils import hairer_norm, init_step

from .solvers import SOLVERS, fixed_grid, get_solver
from .splines import BSplineBasis

__all__ = ["SENSITIVITIES", "BSplineExpansion", "NeuralODE", "RungeKutta"]

SENSITIVITIES = ("autograd", "adjoint", "interpolated_adjoint")

Field = Callable[[Tensor, Tensor], Tensor]

# Upstream's classes, by the name of the tableau that stands in for them. Its string aliases follow from them.
_STAND_INS: dict[type, str] = {
    upstream.Euler: "euler",
    upstream.Midpoint: "midpoint",
    upstream.RungeKutta4: "rk4",
    upstream.DormandPrince45: "dopri5",
    upstream.Tsitouras45: "tsit5",
}
_REFUSED: dict[type, str] = {
    upstream.ImplicitEuler: "torchdyn's implicit Euler evaluates the field at the start of each step and gives zero "
    "gradients",
    upstream.AsynchronousLeapfrog: "torchdyn's leapfrog needs a state of position and velocity and a vector field of "
    "the position alone",
    MultipleShootingDiffeqSolver: "torchdyn's multiple shooting integrates every segment from time 0, which is wrong "
    "for time-dependent fields",
    upstream.RungeKutta4: "it steps with torchdyn's rk4, whose stage times are shifted: it is first order on "
    "time-dependent fields",
}


class RungeKutta(DiffEqSolver):
    """A torchdyn solver that steps by a tableau of ``gode_zoo.solvers``, whose coefficients are float64 throughout.

    It also goes into ``torchdyn.core.NeuralODE(..., solver=RungeKutta("rk4"))``, which mends rk4 alone.

    Args:
        name: a name of ``gode_zoo.solvers.SOLVERS``.

    Raises:
        ValueError: if there is no such solver, or it carries a slope from step to step, which torchdyn's steps cannot.
    """

    def __init__(self, name: str) -> None:
        scheme = get_solver(name)
        if scheme.carries_slope:
            raise ValueError(f'{name} carries a slope from step to step: solve with ODEBlock, or use "midpoint" here')
        super().__init__(order=scheme.order, stepping_class="adaptive" if scheme.adaptive else "fixed")
        self.scheme = scheme

    def step(self, f: Field, x: Tensor, t: Tensor, dt: Tensor, k1: Tensor | None = None, args: Any = None) -> tuple:
        """One step, in torchdyn's format: ``(slope at the end, x, error estimate, slopes)``, or ``(None, x, None)``."""
        step = dt.to(x.dtype)
        slopes = [f(t, x) if k1 is None else k1]
        for row, node in zip(self.scheme.a[1:], self.scheme.c[1:], strict=True):
            slopes.append(f(t + node * dt, x + step * _weighted(row, slopes)))
        x_new = x + step * _weighted(self.scheme.b, slopes)
        if self.scheme.b_embedded is None:
            return None, x_new, None
        weights = [b - e for b, e in zip(self.scheme.b, self.scheme.b_embedded, strict=True)]
        return slopes[-1], x_new, step * _weighted(weights, slopes), tuple(slopes)

    def extra_repr(self) -> str:
        return repr(self.scheme.name)


def _weighted(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight != 0.0]
    return torch.stack(terms).sum(0) if len(terms) > 2 else sum(terms[1:], terms[0])


def _make_solver(name: str, solver: Any) -> nn.Module:
    """A solver module from a name, one of torchdyn's solvers or a user's; ``name`` is the argument's."""
    names = ", ".join(solver for solver, scheme in SOLVERS.items() if not scheme.carries_slope)
    allowed = f"{name} must be one of {names}, or a solver module such as torchdyn's HyperEuler"
    if isinstance(solver, str):
        if solver in SOLVERS:
            return RungeKutta(solver)
        kind = upstream.SOLVER_DICT.get(solver) or upstream.MS_SOLVER_DICT.get(solver)
        if kind is None:
            raise ValueError(f"{name}={solver!r}: {allowed}")
    else:
        kind = type(solver)
    if kind in _STAND_INS:
        return RungeKutta(_STAND_INS[kind])
    for refused, reason in _REFUSED.items():
        if issubclass(kind, refused):
            raise ValueError(f"{name}={solver!r}: {reason}; {allowed}")
    if not isinstance(solver, nn.Module) or getattr(solver, "stepping_class", None) not in ("fixed", "adaptive"):
        raise ValueError(f'{name}={solver!r}: {allowed}, with step() and stepping_class "fixed" or "adaptive"')
    return solver


class NeuralODE(torchdyn.core.NeuralODE):
    """``torchdyn.core.NeuralODE`` for time-dependent fields, with the faults above mended or refused.

    On a fixed grid (euler, midpoint, heun, rk4) the steps are the spacing of ``t_span`` as in torchdyn, or a span of two
    times cut up by ``num_steps`` or ``step_size``. There is no default grid: upstream's is a single step.

    Args:
        vector_field: a field of this package, or what torchdyn takes.
        solver: euler, midpoint, heun, rk4 (fixed grid), dopri5 or tsit5 (adaptive), torchdyn's other names for these,
            or a solver module.
        order: order of the differential equation.
        atol: absolute tolerance of an adaptive solver, 1e-3 where not given. Not for a fixed grid.
        rtol: relative tolerance of an adaptive solver, 1e-3 where not given. Not for a fixed grid.
        sensitivity: ``"autograd"`` through every step; ``"adjoint"``, the continuous adjoint; or
            ``"interpolated_adjoint"``, the adjoint along the interpolated forward solution. On a fixed grid the
            latter two are wrong by the order of the step, so they warn.
        solver_adjoint: solver of the adjoint, by default as ``solver``. Not with autograd.
        atol_adjoint: absolute tolerance of an adaptive adjoint, 1e-4 where not given.
        rtol_adjoint: relative tolerance of an adaptive adjoint, 1e-4 where not given.
        interpolator: must be None: the solve steps onto every time of ``t_span``.
        integral_loss: torchdyn's ``g(t, x)``, added to the loss as its integral over the span. With autograd the first
            channel of a 2-D state is the integral, as in torchdyn.
        seminorm: leave the parameters' gradients out of the error estimate of an adaptive adjoint. (Upstream accepts
            the keyword and always does so.)
        return_t_eval: return ``(t_eval, solution)``; otherwise the solution alone.
        optimizable_params: parameters of a ``vector_field`` that owns none itself.
        t_span: times for calls that give none, ``(T,)``; (0, 1) where that leaves the steps determined.
        num_steps: number of equal steps between the two times of the span, for a fixed-grid solver …
        step_size: … or their size, the last step being the shorter one where it does not divide the span.

    Raises:
        ValueError: on a value outside these limits, or values that cannot be right together.
    """

    def __init__(
        self,
        vector_field: Callable | nn.Module,
        solver: str | nn.Module = "tsit5",
        order: int = 1,
        atol: float | None = None,
        rtol: float | None = None,
        sensitivity: str = "autograd",
        solver_adjoint: str | nn.Module | None = None,
        atol_adjoint: float | None = None,
        rtol_adjoint: float | None = None,
        interpolator: None = None,
        integral_loss: Callable | None = None,
        seminorm: bool = False,
        return_t_eval: bool = True,
        optimizable_params: Iterable[nn.Parameter] = (),
        *,
        t_span: Sequence[float] | Tensor | None = None,
        num_steps: int | None = None,
        step_size: float | None = None,
    ) -> None:
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise ValueError(f"order={order!r}: must be an integer of at least 1")
        if sensitivity not in SENSITIVITIES:
            raise ValueError(f"sensitivity={sensitivity!r}: must be one of {', '.join(SENSITIVITIES)}")
        if interpolator is not None:
            raise ValueError(f"interpolator={interpolator!r}: must be None, the solve steps onto every time of t_span")
        forward_solver = _make_solver("solver", solver)
        fixed = _is_fixed(forward_solver)
        tolerances = _tolerances(fixed, "solver", solver, atol=atol, rtol=rtol, default=1e-3)
        if sensitivity == "autograd":
            backward_solver = forward_solver
            given = {
                "solver_adjoint": solver_adjoint,
                "atol_adjoint": atol_adjoint,
                "rtol_adjoint": rtol_adjoint,
                "seminorm": seminorm or None,
            }
            for name, value in given.items():
                if value is not None:
                    raise ValueError(f'{name}={value!r} with sensitivity="autograd", which has no adjoint: drop it')
            adjoint_tolerances = (1e-4, 1e-4)
        else:
            backward_solver = _make_solver("solver_adjoint", solver if solver_adjoint is None else solver_adjoint)
            fixed_adjoint = _is_fixed(backward_solver)
            if fixed_adjoint and not fixed:
                raise ValueError(
                    f"solver_adjoint={solver_adjoint!r} with solver={solver!r}: a fixed-grid adjoint needs the grid of a "
                    "fixed-grid solver; use dopri5 or tsit5 for the adjoint"
                )
            adjoint_tolerances = _tolerances(  # type: ignore[assignment]
                fixed_adjoint,
                "solver_adjoint",
                solver_adjoint or solver,
                atol_adjoint=atol_adjoint,
                rtol_adjoint=rtol_adjoint,
                default=1e-4,
            )
            if seminorm and fixed_adjoint:
                raise ValueError("seminorm=True with a fixed-grid adjoint, which estimates no error: drop it")
            if any(p.requires_grad for p in forward_solver.parameters()):
                raise ValueError(
                    f'sensitivity={sensitivity!r} gives the parameters of solver={solver!r} no gradient: use "autograd", '
                    "or freeze them"
                )
            if fixed:
                warnings.warn(
                    f"sensitivity={sensitivity!r} with solver={solver!r}: on a fixed grid the adjoint's gradients are "
                    'not those of the discrete solve (34 % off for Euler in a trial); use "autograd"',
                    UserWarning,
                    stacklevel=2,
                )
        parameters = tuple(optimizable_params)
        if parameters and isinstance(vector_field, nn.Module) and any(True for _ in vector_field.parameters()):
            raise ValueError(
                f"optimizable_params has {len(parameters)} tensors, but the vector field has parameters of its own, "
                "which are the ones used: drop it, or register them in the vector field"
            )
        super().__init__(
            vector_field,
            solver=forward_solver,
            order=order,
            atol=tolerances[0],
            rtol=tolerances[1],
            sensitivity=sensitivity,
            atol_adjoint=adjoint_tolerances[0],
            rtol_adjoint=adjoint_tolerances[1],
            integral_loss=integral_loss,
            return_t_eval=return_t_eval,
            optimizable_params=parameters,
        )
        self.solver_adjoint = backward_solver
        self.seminorm = seminorm
        if num_steps is not None or step_size is not None:
            if not fixed:
                raise ValueError(
                    f"num_steps={num_steps}, step_size={step_size} with solver={solver!r}, which chooses its own steps: "
                    "drop them, or use euler, midpoint, heun or rk4"
                )
            fixed_grid((0.0, 1.0), step_size, num_steps)  # refuses bad values now rather than at the first call
        self.num_steps, self.step_size = num_steps, step_size
        self.t_span = None if t_span is None else _check_times(t_span)
        if self.t_span is not None:
            self._grid(None)

    @property
    def vf_params(self) -> Tensor:
        """All parameters of the vector field as one vector, made when read: a stored one would be stale, and not a leaf."""
        return torch.cat([p.contiguous().flatten() for p in self.vf.parameters()])

    @vf_params.setter
    def vf_params(self, value: Tensor) -> None:
        """Upstream's ``__init__`` assigns what the getter computes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "NeuralODE":
        # torchdyn's DepthCat and GalLinear keep the last time and weights as attributes, which are not leaves either.
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__reduce_ex__(4)[2], memo))
        return copied

    def _grid(self, t_span: Sequence[float] | Tensor | None) -> Tensor:
        """The times of the solve, from the call's ``t_span``, the constructor's, and ``num_steps`` or ``step_size``."""
        span = self.t_span if t_span is None else t_span
        stepped = self.num_steps is not None or self.step_size is not None
        if span is None:
            if _is_fixed(self.solver) and not stepped:
                raise ValueError(
                    f"t_span=None with solver={self.solver}: a fixed-grid solver has no default grid (torchdyn's is one "
                    "step over (0, 1)); construct with num_steps= or step_size=, or pass the times of the grid, such as "
                    "t_span=torch.linspace(0, 1, 21) for steps of 0.05"
                )
            span = (0.0, 1.0)
        times = _check_times(span)
        if not stepped:
            return times
        if len(times) != 2:
            raise ValueError(
                f"t_span has {len(times)} times and num_steps={self.num_steps}, step_size={self.step_size}: pass "
                "(t0, t1) to cut up, or drop num_steps and step_size and pass the grid itself"
            )
        if times.requires_grad:
            raise ValueError(
                "t_span requires a gradient with num_steps or step_size: drop those and pass the grid itself"
            )
        sign = _direction(times)
        grid = fixed_grid([sign * time for time in times.tolist()], self.step_size, self.num_steps)
        # In float64 (where the device has it), so that the times meet the knots of the basis when both are rounded.
        dtype = torch.float32 if times.device.type == "mps" else torch.float64
        return sign * torch.tensor(grid, dtype=dtype, device=times.device)

    def _prep_integration(self, x: Tensor, t_span: Sequence[float] | Tensor | None) -> tuple[Tensor, Tensor]:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ValueError(f"x is {x.dtype if isinstance(x, Tensor) else type(x)}: the state must be a float tensor")
        return super()._prep_integration(x, self._grid(t_span))

    def odeint(
        self, x: Tensor, t_span: Tensor, save_at: Sequence[float] | Tensor = (), args: dict | None = None
    ) -> tuple[Tensor, Tensor]:
        """Solve on the times of ``t_span`` and return them with the states ``(T, B, …)``, or those at ``save_at`` alone.

        Raises:
            ValueError: if a time of ``save_at`` is not one of ``t_span``, or under the adjoints if ``args`` is not
                empty or ``t_span`` requires a gradient.
            RuntimeError: if the step of an adaptive solver underflows, as it does when the state is not finite.
        """
        times = t_span.to(x.device)
        if args and self.order > 1:
            raise ValueError(f"args={args!r} with order={self.order}: torchdyn hands args on at order 1 alone; drop it")
        if self.sensitivity == "autograd":
            solution = self._solve(x, times, args=args)[1]
        else:
            if args or times.requires_grad:
                what = f"args={args!r}" if args else "a t_span that requires a gradient"
                raise ValueError(
                    f'{what} with sensitivity={self.sensitivity!r}: gets no gradient there; use "autograd"'
                )
            parameters = [p for p in self.vf.parameters() if p.requires_grad]
            if torch.is_grad_enabled() and (parameters or x.requires_grad):
                solution = _Adjoint.apply(self, times, x, *parameters)
            else:
                solution = self._solve(x, times)[1]
        if len(save_at) == 0:
            return times, solution
        wanted = torch.as_tensor(save_at, dtype=times.dtype, device=times.device).flatten()
        distance = (wanted[:, None] - times.detach()).abs()
        index = distance.argmin(1)
        tolerance = 1e-5 * times.detach().diff().abs().min()
        if bool((distance.amin(1) > tolerance).any()):
            raise ValueError(f"save_at={save_at!r}: every time must be one of the {len(times)} times of t_span")
        return times[index], solution[index]

    def trajectory(self, x: Tensor, t_span: Sequence[float] | Tensor | None = None) -> Tensor:
        """The states ``(T, B, …)`` alone, with gradients by autograd whatever the sensitivity, as in torchdyn."""
        x, times = self._prep_integration(x, t_span)
        return self._solve(x, times.to(x.device))[1]

    def _solve(self, x: Tensor, times: Tensor, every: bool = False, args: dict | None = None) -> tuple[Tensor, ...]:
        def field(t: Tensor, state: Tensor) -> Tensor:
            return self.vf(t, state, args=args) if args else self.vf(t, state)

        return _integrate(field, x, times, self.solver, self.atol, self.rtol, every=every)

    def _solve_adjoint(self, f: Field, state: Tensor, t0: Tensor, t1: Tensor, norm_size: int) -> Tensor:
        """The augmented state at ``t1``; the error estimate looks at its first ``norm_size`` values under ``seminorm``."""
        times = torch.stack([t0, t1])
        size = norm_size if self.seminorm else None
        return _integrate(f, state, times, self.solver_adjoint, self.atol_adjoint, self.rtol_adjoint, norm_size=size)[
            1
        ][-1]


class _Adjoint(torch.autograd.Function):
    """Both adjoints. λ = ∂L/∂x and μ = ∂L/∂θ follow ``(λ, μ)' = −∂(λ·f + g)/∂(x, θ)`` backwards in time.

    The plain adjoint solves for x along with them; the interpolated one reads x off the forward solution.
    """

    @staticmethod
    def forward(ctx: Any, problem: NeuralODE, times: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        interpolated = problem.sensitivity == "interpolated_adjoint"
        nodes, states, index = problem._solve(x, times, every=interpolated)
        solution = states[index]
        ctx.problem, ctx.interpolated = problem, interpolated
        ctx.save_for_backward(times, solution, nodes, states if interpolated else solution, *parameters)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        problem: NeuralODE = ctx.problem
        times, solution, nodes, states, *parameters = ctx.saved_tensors
        example, size = solution[0], solution[0].numel()
        needed = sum(p.numel() for p in parameters)
        path = _hermite(problem.vf, nodes, states) if ctx.interpolated else None

        def pull_back(t: Tensor, x: Tensor, adjoint: Tensor) -> list[Tensor]:
            """f at (t, x), and −∂(λ·f + g)/∂ of x and of every parameter, flat."""
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                slope = problem.vf(t, x)
                hamiltonian = (slope * adjoint).sum()
                if problem.integral_loss is not None:
                    hamiltonian = hamiltonian + problem.integral_loss(t, x).sum()
                targets = (x, *parameters)
                pulled: Sequence[Tensor | None] = [None] * len(targets)
                if hamiltonian.requires_grad:
                    pulled = torch.autograd.grad(hamiltonian, targets, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else -g for g, p in zip(pulled, targets, strict=True)]
            return [part.flatten().to(example.dtype) for part in (slope.detach(), *parts)]

        def along_path(t: Tensor, state: Tensor) -> Tensor:
            assert path is not None
            return torch.cat(pull_back(t, path(t), state[:size].view_as(example))[1:])

        def augmented(t: Tensor, state: Tensor) -> Tensor:
            x, adjoint = state[:size].view_as(example), state[size : 2 * size].view_as(example)
            return torch.cat(pull_back(t, x, adjoint))

        carried = torch.cat([grads[0][-1].flatten(), example.new_zeros(needed)])
        for i in range(len(times) - 1, 0, -1):
            if ctx.interpolated:
                carried = problem._solve_adjoint(along_path, carried, times[i], times[i - 1], size)
            else:
                # x starts from the stored solution at every time, so that its backward drift does not add up.
                state = torch.cat([solution[i].flatten(), carried])
                carried = problem._solve_adjoint(augmented, state, times[i], times[i - 1], 2 * size)[size:]
            carried = torch.cat([carried[:size] + grads[0][i - 1].flatten(), carried[size:]])
        parts = carried.split([size, *(p.numel() for p in parameters)])
        targets = (example, *parameters)
        return None, None, *(part.view_as(target).to(target.dtype) for part, target in zip(parts, targets, strict=True))


def _hermite(f: Field, nodes: Tensor, states: Tensor) -> Callable[[Tensor], Tensor]:
    """The cubic Hermite interpolant through a solution ``(T, …)`` and its slopes f; its error is O(step⁴)."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    slopes = torch.stack([f(t.to(dtype), x) for t, x in zip(nodes, states, strict=True)])
    sign = _direction(nodes)

    def path(t: Tensor) -> Tensor:
        i = int(torch.searchsorted(sign * nodes, (sign * t).to(nodes.dtype)).clamp(1, len(nodes) - 1)) - 1
        step = (nodes[i + 1] - nodes[i]).to(states.dtype)
        s = (t.to(nodes.dtype) - nodes[i]).to(states.dtype) / step
        ends = (1 + 2 * s) * (1 - s) ** 2 * states[i] + s**2 * (3 - 2 * s) * states[i + 1]
        return ends + step * (s * (1 - s) ** 2 * slopes[i] + s**2 * (s - 1) * slopes[i + 1])

    return path


def _integrate(
    f: Field,
    x: Tensor,
    times: Tensor,
    solver: nn.Module,
    atol: float,
    rtol: float,
    every: bool = False,
    norm_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve from ``times[0]`` on, in either direction, stepping onto every time exactly.

    f is called with 0-d times inside the span, in the state's precision and at least float32.

    Args:
        f: the vector field.
        x: the state at ``times[0]``.
        times: ``(T,)``, strictly monotone.
        solver: a solver module.
        atol: absolute tolerance of an adaptive solver.
        rtol: relative tolerance of an adaptive solver.
        every: return every accepted step of an adaptive solver.
        norm_size: how many leading values of the state the error estimate looks at; all where not given.

    Returns:
        times ``(N,)``, states ``(N, *x.shape)``, and where among these the T times are.
    """
    sign = _direction(times)
    dtype = torch.promote_types(x.dtype, torch.float32)
    low, high = (times.detach().amin(), times.detach().amax())

    def field(s: Tensor, state: Tensor) -> Tensor:
        # Rounding must not carry a stage out of the span, where clamped B-splines jump to zero.
        slope = f((sign * s).clamp(low, high).to(dtype), state)
        return slope if sign > 0 else -slope

    x, s = solver.sync_device_dtype(x, sign * times.to(torch.promote_types(times.dtype, dtype)))  # type: ignore[operator]
    if _is_fixed(solver):
        states = [x]
        for start, step in zip(s[:-1], s.diff(), strict=True):
            x = solver.step(field, x, start, step)[1]  # type: ignore[operator]
            states.append(x)
        return times, torch.stack(states), torch.arange(len(times), device=times.device)
    nodes, states, index = [s[0]], [x], [0]
    t, first = s[0], field(s[0], x)
    step = init_step(field, first, x, t, solver.order, atol, rtol).detach()
    for target in s[1:]:
        arrived = False
        while not arrived:
            last = bool(t + step >= target)
            used = target - t if last else step
            if not bool(t + used > t):
                raise RuntimeError(
                    f"{solver}: the step fell to {float(used):.3g} at t={sign * float(t):.6g}: the state is not finite, "
                    f"or atol={atol} and rtol={rtol} are too tight for {x.dtype}"
                )
            new_slope, new_x, error, _ = solver.step(field, x, t, used, k1=first)  # type: ignore[operator]
            with torch.no_grad():
                scale = atol + rtol * torch.maximum(x.abs(), new_x.abs())
                ratio = float(hairer_norm((error / scale)[:norm_size] if norm_size else error / scale))
            proposed = used.detach() * _factor(solver, ratio)
            if ratio <= 1:
                # A step that was cut short to meet a time must not shorten those after it.
                step = torch.maximum(step, proposed) if last else proposed
                t, x, first, arrived = target if last else t + used, new_x, new_slope, last
                if every or last:
                    nodes.append(t)
                    states.append(x)
                if last:
                    index.append(len(nodes) - 1)
            else:
                step = proposed
    return sign * torch.stack(nodes), torch.stack(states), torch.tensor(index, device=x.device)


def _factor(solver: nn.Module, ratio: float) -> float:
    """What the step is multiplied by after an error ``ratio``, with torchdyn's limits."""
    least, most = (1.0 if ratio <= 1 else float(solver.min_factor)), float(solver.max_factor)  # type: ignore[arg-type]
    if ratio == 0:
        return most
    return min(most, max(least, float(solver.safety) * ratio ** (-1 / solver.order))) if math.isfinite(ratio) else least  # type: ignore[arg-type, operator, return-value]


def _is_fixed(solver: nn.Module) -> bool:
    return solver.stepping_class == "fixed"


def _direction(times: Tensor) -> float:
    return 1.0 if bool(times[-1] > times[0]) else -1.0


def _check_times(t_span: Sequence[float] | Tensor) -> Tensor:
    if not isinstance(t_span, Tensor):
        t_span = torch.tensor([float(time) for time in t_span], dtype=torch.float64)
    steps = t_span.detach().diff() if t_span.dim() == 1 else torch.zeros(0)
    if not t_span.is_floating_point() or len(steps) == 0 or not bool((steps > 0).all() or (steps < 0).all()):
        raise ValueError(
            f"t_span={t_span!r}: need at least two times, all rising or all falling, such as torch.linspace(0, 1, 21)"
        )
    if not bool(torch.isfinite(t_span).all()):
        raise ValueError(f"t_span={t_span!r}: every time must be finite")
    return t_span


def _tolerances(fixed: bool, name: str, solver: Any, default: float, **given: float | None) -> tuple[float, ...]:
    for key, value in given.items():
        if value is not None and fixed:
            raise ValueError(
                f"{key}={value} with {name}={solver!r}, which steps on a fixed grid: drop it, or use dopri5"
            )
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{key}={value!r}: must be positive and finite")
    return tuple(default if value is None else float(value) for value in given.values())


class BSplineExpansion(nn.Module):
    """B-splines of time as the ``expfunc`` of ``torchdyn.nn.GalLinear``.

    ::

        expfunc = BSplineExpansion(BSplineBasis(num_basis=8, degree=3))
        layer = GalLinear(16, 16, expfunc=expfunc, dilation=False, shift=False)
        field = nn.Sequential(DepthCat(1), layer)

    Then ``layer.coeffs`` is ``(P, m, 1)`` with P = out·in weights followed by out biases, and the layer is linear with
    weights ``Σ_i B_i(t) coeffs[:, i, 0]``. Keep dilation and shift off: they move time out of the span of the knots,
    where B-splines are zero. torchdyn computes the layer in float32. torchdyn starts ``coeffs`` at zero.

    Not for ``GalConv2d``: it gives its coefficients two eigenfunctions whatever ``n_eig`` is, so half of them would get
    no gradient. Use ``gode_zoo.layers.SplineConv2d``.

    Args:
        basis: the basis, with ``m = basis.num_basis`` functions.
    """

    def __init__(self, basis: BSplineBasis) -> None:
        super().__init__()
        self.basis = basis
        self.deg, self.n_eig = basis.num_basis, 1

    def forward(self, n_range: Tensor, s: Tensor) -> list[Tensor]:
        """The basis at time ``s`` (0-d or ``(1,)``): one tensor ``(m,)`` in a list. B-splines do not use ``n_range``."""
        return [self.basis(s.reshape(()))]
