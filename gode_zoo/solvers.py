"""Explicit Runge–Kutta solvers: tableaus as data, a fixed-grid and an adaptive solve.

A step of size h from ``x_n`` at ``t_n`` with s stages::

    k_i = f(t_n + c_i h, x_n + h Σ_{j<i} a_ij k_j),    x_{n+1} = x_n + h Σ_i b_i k_i

Every tableau checks itself when it is built: the rows of ``a`` sum to ``c``, and ``b`` fulfils the order conditions of
all rooted trees up to its order, as do the embedded weights up to theirs.

Source: Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I" (1993), sections II.2, II.4, II.5; the
tsit5 coefficients are those of Tsitouras, Computers & Mathematics with Applications 62 (2011).
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .reversible import leapfrog, leapfrog_times
from .splines import check_t_span

__all__ = ["SOLVERS", "Solution", "Tableau", "fixed_grid", "get_solver", "solve_adaptive", "solve_fixed"]

Field = Callable[[Tensor, Tensor], Tensor]


class Solution(NamedTuple):
    """What a solve gives back: the state at the end, and what it took."""

    x: Tensor
    nfe: int
    num_accepted: int
    num_rejected: int


@functools.cache
def _rooted_trees(order: int) -> tuple[tuple, ...]:
    """All rooted trees with ``order`` vertices, each a sorted tuple of its subtrees."""
    if order == 1:
        return ((),)
    found = set()
    for smaller in _rooted_trees(order - 1):
        # Grafting a leaf on every vertex of every smaller tree gives every tree.
        found.update(_graft(smaller))
    return tuple(sorted(found, key=repr))


def _graft(tree: tuple) -> set[tuple]:
    grafted = {tuple(sorted((*tree, ()), key=repr))}
    for i, subtree in enumerate(tree):
        rest = tree[:i] + tree[i + 1 :]
        grafted |= {tuple(sorted((*rest, larger), key=repr)) for larger in _graft(subtree)}
    return grafted


def _size(tree: tuple) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: tuple) -> int:
    return _size(tree) * math.prod(map(_density, tree))


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau.

    Args:
        name: the solver's name.
        order: order of ``b``.
        c: stage times, s of them.
        a: strictly lower triangular rows; row i has i entries.
        b: weights, s of them.
        b_embedded: weights of the embedded solution that gives the error estimate, or None for a fixed-step solver.
        embedded_order: their order.
        carries_slope: the first stage of a step is not computed but carried over from the step before, which makes the
            solve reversible; see reversible.py. For the coefficients of the midpoint rule alone.

    Raises:
        ValueError: if the coefficients do not have the order that is claimed.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_embedded: tuple[float, ...] | None = None
    embedded_order: int = 0
    carries_slope: bool = False

    def __post_init__(self) -> None:
        stages = len(self.c)
        if len(self.b) != stages or [len(row) for row in self.a] != list(range(stages)):
            raise ValueError(f"{self.name}: c, a and b do not fit together ({stages} stages)")
        for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)):
            if abs(sum(row) - node) > 1e-12:
                raise ValueError(f"{self.name}: row {i} of a sums to {sum(row)}, but c is {node}")
        self._check_order(self.b, self.order, "b")
        if self.b_embedded is not None:
            self._check_order(self.b_embedded, self.embedded_order, "b_embedded")

    def _check_order(self, weights: tuple[float, ...], order: int, name: str) -> None:
        for size in range(1, order + 1):
            for tree in _rooted_trees(size):
                value = sum(w * phi for w, phi in zip(weights, self._elementary_weights(tree), strict=True))
                if abs(value - 1 / _density(tree)) > 1e-12:
                    raise ValueError(f"{self.name}: {name} misses the order-{size} condition of tree {tree}: {value}")

    def _elementary_weights(self, tree: tuple) -> list[float]:
        result = [1.0] * len(self.c)
        for subtree in tree:
            inner = self._elementary_weights(subtree)
            for i, row in enumerate(self.a):
                result[i] *= sum(w * phi for w, phi in zip(row, inner, strict=False))
        return result

    @property
    def adaptive(self) -> bool:
        """Whether the step size follows from an error estimate."""
        return self.b_embedded is not None

    @property
    def fsal(self) -> bool:
        """Whether the last stage is the first one of the next step."""
        return self.c[-1] == 1.0 and (*self.a[-1], 0.0) == self.b


_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
_TSIT5_ERROR = (
    -0.00178001105222577714,
    -0.0008164344596567469,
    0.007880878010261995,
    -0.1447110071732629,
    0.5823571654525552,
    -0.45808210592918697,
    1 / 66,
)

SOLVERS: dict[str, Tableau] = {
    tableau.name: tableau
    for tableau in (
        Tableau("euler", 1, (0.0,), ((),), (1.0,)),
        Tableau("midpoint", 2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
        Tableau("leapfrog", 2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0), carries_slope=True),
        Tableau("heun", 2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
        Tableau(
            "rk4",
            4,
            (0.0, 0.5, 0.5, 1.0),
            ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
            (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        ),
        Tableau(
            "dopri5",
            5,
            (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
            (
                (),
                (1 / 5,),
                (3 / 40, 9 / 40),
                (44 / 45, -56 / 15, 32 / 9),
                (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
                (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
                _DOPRI5_B[:-1],
            ),
            _DOPRI5_B,
            (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
            4,
        ),
        Tableau(
            "tsit5",
            5,
            (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
            (
                (),
                (0.161,),
                (-0.008480655492356989, 0.335480655492357),
                (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
                (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
                (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
                _TSIT5_B[:-1],
            ),
            _TSIT5_B,
            tuple(b - e for b, e in zip(_TSIT5_B, _TSIT5_ERROR, strict=True)),
            4,
        ),
    )
}


def get_solver(name: str) -> Tableau:
    """The tableau of a solver's name.

    Raises:
        ValueError: if there is none, with the names there are.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver={name!r}: must be one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def fixed_grid(
    t_span: Sequence[float], step_size: float | None = None, num_steps: int | None = None
) -> tuple[float, ...]:
    """Times t0 = g_0 < … < g_n = t1 of a fixed grid, from either the step size or the number of steps.

    Where ``step_size`` does not divide the span, the last step is the shorter one.

    Raises:
        ValueError: if both or neither are given, or one is not positive and finite.
    """
    t0, t1 = check_t_span(t_span)
    if (step_size is None) == (num_steps is None):
        raise ValueError(f"step_size={step_size}, num_steps={num_steps}: give exactly one of them")
    if num_steps is not None:
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_steps={num_steps!r}: must be an integer of at least 1")
        return (*(t0 + n * (t1 - t0) / num_steps for n in range(num_steps)), t1)
    assert step_size is not None
    if not math.isfinite(step_size) or step_size <= 0:
        raise ValueError(f"step_size={step_size!r}: must be positive and finite")
    steps = max(1, math.ceil((t1 - t0) / step_size - 1e-9))
    return (*(t0 + n * step_size for n in range(steps)), t1)


def solve_fixed(field: Field, x: Tensor, grid: Sequence[float], tableau: Tableau) -> Solution:
    """Integrate ``dx/dt = field(t, x)`` over the steps of ``grid``, upwards or downwards in time.

    ``field`` is called with ``t`` 0-d, in float64 for a float64 state and float32 otherwise.
    """
    time_dtype = torch.promote_types(x.dtype, torch.float32)
    if tableau.carries_slope:
        times = leapfrog_times(grid)
        sizes = [t1 - t0 for t0, t1 in itertools.pairwise(grid)]
        end, _ = leapfrog(lambda k, y: field(torch.tensor(times[k], dtype=time_dtype, device=y.device), y), x, sizes)
        return Solution(end, len(times), len(sizes), 0)
    for t0, t1 in itertools.pairwise(grid):
        slopes: list[Tensor] = []
        for row, node in zip(tableau.a, tableau.c, strict=True):
            time = t1 if node == 1.0 else t0 + node * (t1 - t0)
            slopes.append(field(torch.tensor(time, dtype=time_dtype, device=x.device), _move(x, slopes, row, t1 - t0)))
        x = _move(x, slopes, tableau.b, t1 - t0)
    steps = len(grid) - 1
    return Solution(x, steps * len(tableau.c), steps, 0)


def _move(x: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], step: float) -> Tensor:
    """``x + step · Σ weights_i · slopes_i``."""
    for slope, weight in zip(slopes, weights, strict=False):
        if weight != 0.0:
            x = torch.add(x, slope, alpha=step * weight)
    return x


def solve_adaptive(
    field: Field,
    x: Tensor,
    t_span: tuple[float, float],
    tableau: Tableau,
    rtol: float,
    atol: float,
    max_steps: int = 10_000,
) -> Solution:
    """Integrate over ``t_span`` (either direction) with steps chosen by the embedded error estimate.

    A step is accepted when the root mean square over the whole batch of ``error / (atol + rtol · max(|x_n|,
    |x_{n+1}|))`` is at most 1. Step sizes are constants to autograd. Each step reads its error on the host.

    Raises:
        RuntimeError: if the state is no longer finite, the step underflows or ``max_steps`` are not enough.
    """
    assert tableau.b_embedded is not None
    t, t1 = t_span
    direction = 1.0 if t1 > t else -1.0
    time_dtype = torch.promote_types(x.dtype, torch.float32)
    error_weights = [b - e for b, e in zip(tableau.b, tableau.b_embedded, strict=True)]

    def call(time: float, state: Tensor) -> Tensor:
        return field(torch.tensor(time, dtype=time_dtype, device=x.device), state)

    first = call(t, x)
    step, nfe = _initial_step(call, t, x, first, t1, tableau.embedded_order, rtol, atol), 2
    accepted = rejected = 0
    while t != t1:
        if accepted + rejected >= max_steps:
            raise RuntimeError(
                f"{tableau.name} took {max_steps} steps and reached t={t:.6g} of {t1:.6g}: loosen rtol={rtol} and "
                f"atol={atol}, or use a fixed-step solver"
            )
        last = abs(step) >= abs(t1 - t)
        step = t1 - t if last else step
        if abs(step) <= 1e-14 * max(abs(t), abs(t1)):
            raise RuntimeError(
                f"{tableau.name}: the step fell to {step:.3g} at t={t:.6g}: loosen rtol={rtol} and atol={atol}, or use a "
                "fixed-step solver"
            )
        slopes = [first]
        for row, node in zip(tableau.a[1:], tableau.c[1:], strict=True):
            time = t1 if last and node == 1.0 else t + node * step
            slopes.append(call(time, _move(x, slopes, row, step)))
        nfe += len(tableau.c) - 1
        candidate = _move(x, slopes, tableau.b, step)
        with torch.no_grad():
            error = _move(torch.zeros_like(x), slopes, error_weights, step)
            ratio = _scaled_norm(error, torch.maximum(x.abs(), candidate.abs()), rtol, atol)
        if not math.isfinite(ratio) and not bool(torch.isfinite(x).all()):
            raise RuntimeError(f"{tableau.name}: the state is not finite at t={t:.6g}")
        factor = 0.9 * ratio ** (-1 / (tableau.embedded_order + 1)) if 0 < ratio < math.inf else 10.0 * (ratio == 0)
        if ratio <= 1.0:
            t = t1 if last else t + step
            x = candidate
            accepted += 1
            if t != t1:
                first = slopes[-1] if tableau.fsal else call(t, x)
                nfe += 0 if tableau.fsal else 1
            step *= min(10.0, max(factor, 1.0))
        else:
            rejected += 1
            step *= min(0.9, max(factor, 0.2))
        step = direction * abs(step)
    return Solution(x, nfe, accepted, rejected)


def _scaled_norm(value: Tensor, size: Tensor, rtol: float, atol: float) -> float:
    scaled = value / (atol + rtol * size)
    return float(scaled.double().pow(2).mean().sqrt()) if scaled.numel() else 0.0


@torch.no_grad()
def _initial_step(
    call: Callable[[float, Tensor], Tensor],
    t: float,
    x: Tensor,
    slope: Tensor,
    t1: float,
    order: int,
    rtol: float,
    atol: float,
) -> float:
    """A first step size, by Hairer, Nørsett and Wanner, section II.4; costs one call of the field."""
    size = x.abs()
    d0, d1 = _scaled_norm(x, size, rtol, atol), _scaled_norm(slope, size, rtol, atol)
    guess = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    guess = min(guess, abs(t1 - t))
    signed = math.copysign(guess, t1 - t)
    d2 = _scaled_norm(call(t + signed, torch.add(x, slope, alpha=signed)) - slope, size, rtol, atol) / guess
    steepest = max(d1, d2)
    refined = max(1e-6, guess * 1e-3) if steepest <= 1e-15 else (0.01 / steepest) ** (1 / (order + 1))
    return math.copysign(min(100 * guess, refined, abs(t1 - t)), t1 - t)
