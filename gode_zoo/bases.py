"""Bases of time: the ``m`` functions B_1 … B_m of which every time-varying weight is a combination, W(t) = Σ_i B_i(t) ξ_i.

``Basis`` is what layers, fields, penalties and surgery ask of one. ``BSplineBasis`` (splines.py) is this package's own; here
are the global bases of Galerkin neural ODEs, with s = (t − t0) / (t1 − t0) from 0 to 1 over the span::

    FourierBasis      1, cos(πs), sin(πs), cos(2πs), sin(2πs), …     period twice the span: W(t0) and W(t1) may differ
    PolynomialBasis   1, s, s², …
    ChebyshevBasis    T_0(2s − 1), T_1(2s − 1), …
    RBFBasis          exp(−((s − c_i) / w)²), centres c_i equally spaced from 0 to 1, width w their distance

Shapes: ``(*s)`` any shape of times; ``m`` number of basis functions.

Source: Massaroli et al., "Dissecting Neural ODEs" (2020), section 3, and the functions of ``torchdyn.nn.galerkin``. There
the frequencies are ``linspace(0, deg, deg)``, which are no integers, and t is not scaled; here they are 0, 1, 2 …
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "GLOBAL_BASES",
    "Basis",
    "ChebyshevBasis",
    "FourierBasis",
    "PolynomialBasis",
    "RBFBasis",
    "check_t_span",
    "gauss_legendre",
]


def check_t_span(t_span: Sequence[float]) -> tuple[float, float]:
    """Return ``t_span`` as two floats ``(t0, t1)``.

    Raises:
        ValueError: unless it holds two finite times with t0 < t1.
    """
    span = tuple(float(time) for time in t_span)
    if len(span) != 2 or not all(map(math.isfinite, span)) or span[0] >= span[1]:
        raise ValueError(f"t_span={t_span!r}: need two finite times (t0, t1) with t0 < t1, such as (0.0, 1.0)")
    return span


def gauss_legendre(breaks: Sequence[float], points: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights ``(N,)`` of Gauss–Legendre quadrature with ``points`` nodes between each two breaks, in float64.

    Exact for piecewise polynomials of degree 2 · points − 1 that are smooth between breaks. No node lies on a break.
    """
    edges = torch.tensor(breaks, dtype=torch.float64)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(points))
    half = edges.diff()[:, None] / 2
    return (edges[:-1, None] + half * (1 + nodes)).flatten(), (half * weights).flatten()


class Basis(nn.Module):
    """``m`` functions of time; what every basis here has.

    Args:
        num_basis: number of basis functions m, at least 1.
        t_span: the span (t0, t1) of the dimensionless time.

    Raises:
        ValueError: on a value outside these limits.
    """

    def __init__(self, num_basis: int, t_span: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__()
        if isinstance(num_basis, bool) or not isinstance(num_basis, int) or num_basis < 1:
            raise ValueError(f"num_basis={num_basis!r}: must be an integer of at least 1")
        self.num_basis = num_basis
        self.t_span = check_t_span(t_span)

    @torch.jit.unused
    def forward(self, t: Tensor) -> Tensor:
        """Design matrix: every basis function at every time.

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
        return self._derivative(t.to(torch.promote_types(t.dtype, torch.float32)), order)

    def _derivative(self, t: Tensor, order: int) -> Tensor:
        raise NotImplementedError

    def breaks(self) -> list[float]:
        """Times from t0 to t1 between which every basis function is smooth."""
        return list(self.t_span)

    @property
    def gauss_points(self) -> int:
        """Quadrature nodes between two breaks that integrate a product of two basis functions exactly (or to rounding)."""
        raise NotImplementedError

    def gram(self, order: int = 0) -> Tensor:
        """``∫ B_i^{(order)}(t) B_j^{(order)}(t) dt`` over ``t_span``, by Gauss–Legendre quadrature.

        Returns:
            A symmetric positive semi-definite float64 matrix ``(m, m)`` on the CPU.

        Raises:
            ValueError: if order is negative.
        """
        times, weights = gauss_legendre(self.breaks(), self.gauss_points)
        values = self._on_cpu().derivative(times, order)
        return values.T @ (weights[:, None] * values)

    def _on_cpu(self) -> "Basis":
        return self

    def extra_repr(self) -> str:
        return f"num_basis={self.num_basis}, t_span={self.t_span}"


class _GlobalBasis(Basis):
    """A basis of smooth functions of s = (t − t0) / (t1 − t0)."""

    @property
    def gauss_points(self) -> int:
        return 4 * self.num_basis + 24  # the nodes converge faster than any power: rounding is reached long before

    def _derivative(self, t: Tensor, order: int) -> Tensor:
        t0, t1 = self.t_span
        return self._in_s((t - t0) / (t1 - t0), order) / (t1 - t0) ** order

    def _in_s(self, s: Tensor, order: int) -> Tensor:
        """The ``order``-th derivative in s: ``(*s)`` to ``(*s, m)``."""
        raise NotImplementedError


class FourierBasis(_GlobalBasis):
    """1, cos(πs), sin(πs), cos(2πs), sin(2πs), … over the span."""

    def _in_s(self, s: Tensor, order: int) -> Tensor:
        columns = torch.arange(self.num_basis, device=s.device)
        frequency = math.pi * ((columns + 1) // 2).to(s.dtype)
        # sin(x) = cos(x − π/2); each derivative adds π/2 to the phase and a factor of the frequency.
        is_sine = (columns % 2 == 0) & (columns > 0)
        phase = (order - is_sine.to(s.dtype)) * (math.pi / 2)
        return frequency**order * torch.cos(s[..., None] * frequency + phase)


class PolynomialBasis(_GlobalBasis):
    """1, s, s², … over the span."""

    def _in_s(self, s: Tensor, order: int) -> Tensor:
        factors = [float(math.perm(power, order)) for power in range(self.num_basis)]  # 0 where order > power
        powers = [torch.ones_like(s)]
        while len(powers) < self.num_basis:
            powers.append(powers[-1] * s)
        zero = torch.zeros_like(s)
        columns = [factor * powers[i - order] if i >= order else zero for i, factor in enumerate(factors)]
        return torch.stack(columns, dim=-1)


class ChebyshevBasis(_GlobalBasis):
    """Chebyshev polynomials of the first kind T_0, T_1, … of 2s − 1, which runs from −1 to 1 over the span."""

    def _in_s(self, s: Tensor, order: int) -> Tensor:
        x = 2 * s - 1
        columns = [torch.ones_like(x), x]
        while len(columns) < self.num_basis:
            columns.append(2 * x * columns[-1] - columns[-2])
        values = torch.stack(columns[: self.num_basis], dim=-1)
        if order == 0:
            return values
        # Column j holds the coefficients of the order-th derivative of T_j, by numpy; 2^order for dx/ds = 2.
        matrix = np.zeros((self.num_basis, self.num_basis))
        for j in range(order, self.num_basis):
            derived = np.polynomial.chebyshev.chebder(np.eye(self.num_basis)[j], order)
            matrix[: len(derived), j] = derived
        return values @ torch.from_numpy(2.0**order * matrix).to(values)


class RBFBasis(_GlobalBasis):
    """Gaussian bumps exp(−((s − c_i) / w)²) with centres equally spaced over the span, as wide as they are apart."""

    def _in_s(self, s: Tensor, order: int) -> Tensor:
        if self.num_basis == 1:
            centres, width = torch.full((1,), 0.5, dtype=s.dtype, device=s.device), 1.0
        else:
            centres = torch.linspace(0.0, 1.0, self.num_basis, dtype=s.dtype, device=s.device)
            width = 1 / (self.num_basis - 1)
        z = (s[..., None] - centres) / width
        # d^n/dz^n exp(−z²) = (−1)^n H_n(z) exp(−z²), with Hermite's H_{n+1} = 2z H_n − 2n H_{n−1}.
        before, hermite = torch.zeros_like(z), torch.ones_like(z)
        for n in range(order):
            before, hermite = hermite, 2 * z * hermite - 2 * n * before
        return (-1 / width) ** order * hermite * torch.exp(-(z**2))


GLOBAL_BASES: dict[str, type[Basis]] = {
    "fourier": FourierBasis,
    "polynomial": PolynomialBasis,
    "chebyshev": ChebyshevBasis,
    "rbf": RBFBasis,
}


def _is_symbolic(t: Tensor) -> bool:
    """Whether ``t`` stands for values that cannot be looked at (meta, fake, or inside a functorch transform)."""
    return (
        t.is_meta
        or (type(t) is not Tensor and not isinstance(t, nn.Parameter))
        or torch._C._functorch.is_functorch_wrapped_tensor(t)
    )
