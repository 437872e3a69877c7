"""B-spline bases of time.

A weight that varies with time is written ``W(t) = Σ_i B_{i,k}(t) ξ_i``, with ``m`` B-splines of degree ``k`` on a knot
vector ``t_0 ≤ … ≤ t_{m+k}``. They follow from the Cox–de Boor recursion, with 0/0 read as 0::

    B_{i,0}(t) = 1 if t_i ≤ t < t_{i+1} else 0
    B_{i,p}(t) = (t − t_i) / (t_{i+p} − t_i) · B_{i,p−1}(t) + (t_{i+p+1} − t) / (t_{i+p+1} − t_{i+1}) · B_{i+1,p−1}(t)

Shapes: ``(*s)`` any shape of times; ``m`` number of basis functions; ``k`` degree.

Source: de Boor, "A Practical Guide to Splines" (1978), chapters IX and X. The uniform unclamped knots are those of Yu,
Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters", section 3.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["BSplineBasis", "check_t_span", "clamped_knots", "uniform_knots"]


def check_t_span(t_span: Sequence[float]) -> tuple[float, float]:
    """Return ``t_span`` as two floats ``(t0, t1)``.

    Raises:
        ValueError: unless it holds two finite times with t0 < t1.
    """
    span = tuple(float(time) for time in t_span)
    if len(span) != 2 or not all(map(math.isfinite, span)) or span[0] >= span[1]:
        raise ValueError(f"t_span={t_span!r}: need two finite times (t0, t1) with t0 < t1, such as (0.0, 1.0)")
    return span


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


class BSplineBasis(nn.Module):
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
        super().__init__()
        for name, value, least in (("num_basis", num_basis, 1), ("degree", degree, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: must be an integer of at least {least}")
        self.num_basis = num_basis
        self.degree = degree
        self.t_span = check_t_span(t_span)
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

    @torch.jit.unused
    def forward(self, t: Tensor) -> Tensor:
        """Design matrix: every basis function at every time.

        The pieces are right-continuous, except that the last knot belongs to the piece before it. Outside the knots
        every basis function is zero.

        Args:
            t: times ``(*s)``. Those of less than float32 precision are computed in float32.

        Returns:
            Values ``(*s, m)``, differentiable in ``t``.

        Raises:
            ValueError: if a time is NaN (checked on the CPU only, where looking costs no synchronisation).
        """
        return self.derivative(t, 0)

    @torch.jit.unused
    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        """The ``order``-th derivative in time of every basis function: ``(*s)`` to ``(*s, m)``.

        Raises:
            ValueError: if order is negative or a time is NaN.
        """
        if order < 0:
            raise ValueError(f"order={order}: must be at least 0")
        if not torch.compiler.is_compiling() and t.device.type == "cpu" and not _is_symbolic(t) and t.isnan().any():
            raise ValueError(f"t holds {int(t.isnan().sum())} NaN of {t.numel()} times: every time must be a number")
        t = t.to(torch.promote_types(t.dtype, torch.float32))
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

    def gram(self, order: int = 0) -> Tensor:
        """``∫ B_i^{(order)}(t) B_j^{(order)}(t) dt`` over ``t_span``, exact for the degree.

        Gauss–Legendre quadrature with k + 1 − order nodes on every knot interval.

        Returns:
            A symmetric positive semi-definite float64 matrix ``(m, m)`` on the CPU.

        Raises:
            ValueError: if order is negative.
        """
        if order < 0:
            raise ValueError(f"order={order}: must be at least 0")
        if order > self.degree:
            return torch.zeros(self.num_basis, self.num_basis, dtype=torch.float64)
        t0, t1 = self.t_span
        breaks = torch.tensor(
            sorted({min(max(knot, t0), t1) for knot in (t0, *self.knot_values, t1)}), dtype=torch.float64
        )
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(self.degree + 1 - order))
        half = breaks.diff()[:, None] / 2
        times = (breaks[:-1, None] + half * (1 + nodes)).flatten()
        # Gauss nodes lie inside the intervals, so no piece is asked for a value at a jump.
        values = self._on_cpu().derivative(times, order)
        return values.T @ ((half * weights).flatten()[:, None] * values)

    def _on_cpu(self) -> "BSplineBasis":
        if self.knots.device.type == "cpu":
            return self
        knots = self.knot_values if self.knot_kind == "explicit" else self.knot_kind
        return BSplineBasis(self.num_basis, self.degree, self.t_span, knots)

    def extra_repr(self) -> str:
        return f"num_basis={self.num_basis}, degree={self.degree}, t_span={self.t_span}, knots={self.knot_kind!r}"


def _is_symbolic(t: Tensor) -> bool:
    """Whether ``t`` stands for values that cannot be looked at (meta, fake, or inside a functorch transform)."""
    return (
        t.is_meta
        or (type(t) is not Tensor and not isinstance(t, nn.Parameter))
        or torch._C._functorch.is_functorch_wrapped_tensor(t)
    )
