"""B-spline bases of time.

A weight that varies with time is written ``W(t) = Σ_i B_{i,k}(t) ξ_i``, with ``m`` B-splines of degree ``k`` on a knot
vector ``t_0 ≤ … ≤ t_{m+k}``. They follow from the Cox–de Boor recursion, with 0/0 read as 0::

    B_{i,0}(t) = 1 if t_i ≤ t < t_{i+1} else 0
    B_{i,p}(t) = (t − t_i) / (t_{i+p} − t_i) · B_{i,p−1}(t) + (t_{i+p+1} − t) / (t_{i+p+1} − t_{i+1}) · B_{i+1,p−1}(t)

Shapes: ``(*s)`` any shape of times; ``m`` number of basis functions; ``k`` degree.

Two changes of basis are matrices ``A (m', m)``, for coefficients ``ξ' = ξ Aᵀ`` with the basis index last: ``insert_knots``,
which leaves W(t) as it is, and ``project_basis``, which gives the nearest W in the L2 norm over the span.

Source: de Boor, "A Practical Guide to Splines" (1978), chapters IX and X; knot insertion is that of Boehm, "Inserting new
knots into B-spline curves" (1980). The uniform unclamped knots are those of Yu,
Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters", section 3.
"""

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bases import Basis, check_t_span, gauss_legendre

__all__ = [
    "BSplineBasis",
    "check_t_span",
    "clamped_knots",
    "finer_knots",
    "insert_knots",
    "project_basis",
    "uniform_knots",
]


def uniform_knots(num_basis: int, degree: int, t_span: Sequence[float] = (0.0, 1.0)) -> tuple[float, ...]:
    """The paper's unclamped knots ``t_i = t0 + i (t1 − t0) / (k + m)``, i = 0 … k + m.

    For k ≥ 1 every basis function is zero at both ends, and their sum is below 1 near them.
    """
    t0, t1 = check_t_span(t_span)
    last = num_basis + degree
    return (*(t0 + i * (t1 - t0) / last for i in range(last)), t1)


def clamped_knots(num_basis: int, degree: int, t_span: Sequence[float] = (0.0, 1.0)) -> tuple[float, ...]:
    """Equally spaced knots with each end repeated k + 1 times: a partition of unity on the closed span.

    Raises:
        ValueError: if m < k + 1, which leaves no interval between the ends.
    """
    t0, t1 = check_t_span(t_span)
    if num_basis < degree + 1:
        raise ValueError(
            f"num_basis={num_basis} with degree={degree}: clamped knots need num_basis >= degree + 1 = {degree + 1}; "
            'raise num_basis, lower degree, or use knots="uniform"'
        )
    intervals = num_basis - degree
    inner = (t0 + i * (t1 - t0) / intervals for i in range(1, intervals))
    return ((t0,) * (degree + 1)) + tuple(inner) + ((t1,) * (degree + 1))


def _check_knots(knots: Sequence[float], num_basis: int, degree: int, t_span: tuple[float, float]) -> tuple[float, ...]:
    """Check an explicit knot vector and return it as floats."""
    values = tuple(float(knot) for knot in knots)
    if len(values) != num_basis + degree + 1:
        raise ValueError(
            f"knots has {len(values)} values: num_basis={num_basis} and degree={degree} need "
            f"num_basis + degree + 1 = {num_basis + degree + 1}"
        )
    if not all(map(math.isfinite, values)):
        raise ValueError(f"knots={values}: every knot must be finite")
    for i, (left, right) in enumerate(itertools.pairwise(values)):
        if right < left:
            raise ValueError(f"knots decrease at index {i + 1} ({left} then {right}): sort them, repeats are allowed")
    for i in range(num_basis):
        if values[i] == values[i + degree + 1]:
            raise ValueError(
                f"knot {values[i]} is repeated more than degree + 1 = {degree + 1} times: basis function {i} would be "
                "zero everywhere; remove a repeat or raise degree"
            )
    if values[0] > t_span[0] or values[-1] < t_span[1]:
        raise ValueError(
            f"knots cover [{values[0]}, {values[-1]}], which does not hold t_span={t_span}: pass the t_span of the knots"
        )
    return values


class BSplineBasis(Basis):
    """The ``m`` B-splines of degree ``k`` on a knot vector, as a function of time.

    It has no parameters and adds nothing to a state dict. The knots stay in float64 whatever the model is cast to
    (float32 on devices without float64).

    Args:
        num_basis: number of basis functions m, at least 1.
        degree: degree k of the polynomial pieces, at least 0.
        t_span: the span (t0, t1) of the dimensionless time.
        knots: ``"uniform"`` (the paper's, unclamped), ``"clamped"``, or m + k + 1 non-decreasing numbers that cover
            ``t_span``, where none is repeated more than k + 1 times.

    Raises:
        ValueError: on a value outside these limits.
    """

    knots: Tensor

    def __init__(
        self,
        num_basis: int,
        degree: int,
        t_span: Sequence[float] = (0.0, 1.0),
        knots: str | Sequence[float] | Tensor = "uniform",
    ) -> None:
        super().__init__(num_basis, t_span)
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
            raise ValueError(f"degree={degree!r}: must be an integer of at least 0")
        self.degree = degree
        if isinstance(knots, str):
            makers = {"uniform": uniform_knots, "clamped": clamped_knots}
            if knots not in makers:
                raise ValueError(f'knots={knots!r}: must be "uniform", "clamped" or the knots themselves')
            self.knot_kind = knots
            values = makers[knots](num_basis, degree, self.t_span)
        else:
            self.knot_kind = "explicit"
            explicit = knots.tolist() if isinstance(knots, Tensor) else list(knots)
            values = _check_knots(explicit, num_basis, degree, self.t_span)
        self.knot_values = values
        self._register_knots(torch.device("cpu"))

    def _register_knots(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.register_buffer("knots", torch.tensor(self.knot_values, dtype=dtype, device=device), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "BSplineBasis":
        # A cast to half must not round the knots, and to_empty() must not lose them: they are made anew.
        super()._apply(fn, recurse)
        self._register_knots(self.knots.device)
        return self

    def _derivative(self, t: Tensor, order: int) -> Tensor:
        """Values and derivatives; pieces are right-continuous, except that the last knot belongs to the piece before it.

        Outside the knots every basis function is zero.
        """
        if order > self.degree:
            return t.new_zeros((*t.shape, self.num_basis))
        knots = self.knots.to(device=t.device, dtype=t.dtype)
        values = self._pieces(t, knots)
        for degree in range(1, self.degree + 1):
            inverse = self._inverse_widths(knots, degree)
            left, right = inverse[:-1] * values[..., :-1], inverse[1:] * values[..., 1:]
            if degree <= self.degree - order:
                values = (t[..., None] - knots[: -degree - 1]) * left + (knots[degree + 1 :] - t[..., None]) * right
            else:
                values = degree * (left - right)
        return values

    def _pieces(self, t: Tensor, knots: Tensor) -> Tensor:
        """Degree 0: which knot interval each time lies in, ``(*s, m + k)``."""
        time = t[..., None]
        inside = (time >= knots[:-1]) & (time < knots[1:])
        last = max(i for i, knot in enumerate(self.knot_values) if knot < self.knot_values[-1])
        closing = torch.arange(len(self.knot_values) - 1, device=t.device) == last
        return (inside | (closing & (time == knots[-1]))).to(t.dtype)

    @staticmethod
    def _inverse_widths(knots: Tensor, degree: int) -> Tensor:
        """1 / (t_{i+p} − t_i) for p = ``degree``, and 0 where the knots coincide."""
        widths = knots[degree:] - knots[:-degree]
        return torch.where(widths > 0, 1 / widths.clamp_min(torch.finfo(knots.dtype).tiny), torch.zeros_like(widths))

    def breaks(self) -> list[float]:
        """The distinct knots inside the span, and its ends."""
        t0, t1 = self.t_span
        return sorted({min(max(knot, t0), t1) for knot in (t0, *self.knot_values, t1)})

    @property
    def gauss_points(self) -> int:
        return self.degree + 1

    def _on_cpu(self) -> "BSplineBasis":
        if self.knots.device.type == "cpu":
            return self
        knots = self.knot_values if self.knot_kind == "explicit" else self.knot_kind
        return BSplineBasis(self.num_basis, self.degree, self.t_span, knots)

    def extra_repr(self) -> str:
        return f"num_basis={self.num_basis}, degree={self.degree}, t_span={self.t_span}, knots={self.knot_kind!r}"


def insert_knots(basis: BSplineBasis, new_knots: Sequence[float]) -> tuple[BSplineBasis, Tensor]:
    """The same splines on more knots: ``B_j = Σ_i A_ij B'_i`` at every time, exactly.

    It holds for unclamped knots too: a spline whose knots are not repeated at the ends is one on a longer vector whose
    coefficients outside are zero, and zero they stay.

    Args:
        basis: the basis with m functions.
        new_knots: times strictly between its first and last knot; a knot that is there already is repeated.

    Returns:
        The basis of degree k with explicit knots and ``m + len(new_knots)`` functions, and ``A (m + len(new_knots), m)`` in
        float64.

    Raises:
        ValueError: if a time is outside, or a knot would be repeated more than k + 1 times.
    """
    knots, degree = list(basis.knot_values), basis.degree
    matrix = torch.eye(basis.num_basis, dtype=torch.float64)
    for time in map(float, new_knots):
        if not knots[0] < time < knots[-1]:
            raise ValueError(
                f"new knot {time}: must lie strictly between the first and the last, {knots[0]}, {knots[-1]}"
            )
        if knots.count(time) > degree:
            raise ValueError(f"new knot {time}: is there degree + 1 = {degree + 1} times already; choose another time")
        place = bisect.bisect_right(knots, time) - 1  # t_place ≤ time < t_{place + 1}
        # ξ'_i = α_i ξ_i + (1 − α_i) ξ_{i−1}, with α = 1 before the new knot's functions and 0 after them.
        alpha = torch.zeros(len(matrix) + 1, 1, dtype=torch.float64)
        alpha[: max(place - degree + 1, 0)] = 1.0
        for i in range(max(place - degree + 1, 0), min(place, len(matrix)) + 1):
            alpha[i] = (time - knots[i]) / (knots[i + degree] - knots[i])
        zero = torch.zeros(1, basis.num_basis, dtype=torch.float64)
        matrix = alpha * torch.cat([matrix, zero]) + (1 - alpha) * torch.cat([zero, matrix])
        knots.insert(place + 1, time)
    return BSplineBasis(len(matrix), degree, basis.t_span, knots), matrix


def finer_knots(basis: BSplineBasis, num_basis: int) -> list[float]:
    """Times to insert for ``num_basis`` functions: knot intervals cut into equal parts, the widest part as small as can be.

    Raises:
        ValueError: if ``num_basis`` is smaller than it is now.
    """
    if num_basis < basis.num_basis:
        raise ValueError(
            f"num_basis={num_basis}: refinement keeps the {basis.num_basis} functions there are and adds more; give at "
            f"least {basis.num_basis}, or compress"
        )
    intervals = list(itertools.pairwise(basis.breaks()))
    parts = [1] * len(intervals)
    for _ in range(num_basis - basis.num_basis):
        # A little slack: of intervals that are equal but for rounding the first is cut.
        widths = [round((right - left) / count, 12) for (left, right), count in zip(intervals, parts, strict=True)]
        parts[widths.index(max(widths))] += 1
    return [
        left + (right - left) * i / count
        for (left, right), count in zip(intervals, parts, strict=True)
        for i in range(1, count)
    ]


def project_basis(source: Basis, target: Basis) -> Tensor:
    """The matrix ``A (m', m)`` of the L2-best approximation over the span: ``ξ' = ξ Aᵀ`` minimises ``∫ ‖W'(t) − W(t)‖² dt``.

    Gauss–Legendre quadrature between the breaks of both bases, exact for B-splines; then least squares on the weighted
    values, whose condition number is the square root of the Gram matrix's. Where functions of ``target`` depend on each
    other over the span, the smallest coefficients are taken.

    Raises:
        ValueError: if the spans differ.
    """
    if source.t_span != target.t_span:
        raise ValueError(f"t_span={target.t_span}: must be that of the basis to project, {source.t_span}")
    breaks = sorted({*source.breaks(), *target.breaks()})
    times, weights = gauss_legendre(breaks, max(source.gauss_points, target.gauss_points))
    root = weights.sqrt()[:, None]
    return torch.linalg.lstsq(root * target._on_cpu()(times), root * source._on_cpu()(times), driver="gelsd").solution
