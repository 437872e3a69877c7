"""Penalties on spline coefficients, for penalised likelihood: loss = −log-likelihood / n + λ · penalty.

With W(t) = Σ_i B_i(t) ξ_i, summed over all weights of a model that are splines of time::

    roughness    ∫ ‖W^{(r)}(t)‖² dt = Σ ξᵀ G ξ,   G_ij = ∫ B_i^{(r)} B_j^{(r)} dt, exact (the basis's Gram matrix); r = 2 of old
    difference   Σ ‖Δ^r ξ‖², differences of neighbouring coefficients (P-splines)
    ridge        Σ ‖ξ‖²

All three are quadratic forms ξᵀ Q ξ, so a model's whole penalty costs one product ``(P, m) · (m, m)`` a tensor.

Shapes: coefficients ``(…, m)``.

Source: Yu, Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters", equation 5;
Green and Silverman, "Nonparametric Regression and Generalized Linear Models" (1994) for roughness; Eilers and Marx,
"Flexible smoothing with B-splines and penalties" (1996) for differences.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .bases import Basis
from .layers import spline_coefficients
from .splines import BSplineBasis

__all__ = ["SplinePenalty", "difference_matrix", "roughness_matrix"]


def roughness_matrix(basis: Basis, order: int = 2) -> Tensor:
    """``G (m, m)`` in float64 with ``ξᵀ G ξ = ∫ (W^{(order)}(t))² dt`` over the span.

    Raises:
        ValueError: if order is below 1, or above the degree of B-splines, whose derivative is then zero between knots.
    """
    if order < 1:
        raise ValueError(f"roughness_order={order}: must be at least 1")
    if isinstance(basis, BSplineBasis) and order > basis.degree:
        raise ValueError(
            f"roughness_order={order} with B-splines of degree {basis.degree}: that derivative is zero between knots, so it "
            f"would penalise nothing; use a degree of at least {order}, a lower roughness_order, or the difference penalty"
        )
    return basis.gram(order)


def difference_matrix(basis: Basis, order: int = 2) -> Tensor:
    """``DᵀD (m, m)`` in float64, with D the differences of order ``order`` of neighbouring coefficients.

    Raises:
        ValueError: for a basis other than B-splines, whose functions have no neighbours, or an order outside 1 … m − 1.
    """
    if not isinstance(basis, BSplineBasis):
        raise ValueError(
            f"difference with {type(basis).__name__}: only coefficients of B-splines are in the order of time"
        )
    if not 1 <= order < basis.num_basis:
        raise ValueError(
            f"difference_order={order} with num_basis={basis.num_basis}: must be 1 to {basis.num_basis - 1}"
        )
    differences = torch.eye(basis.num_basis, dtype=torch.float64).diff(n=order, dim=0)
    return differences.T @ differences


class SplinePenalty:
    """The penalty of all spline weights of a model: ``penalty()`` is a 0-d tensor to add to the loss.

    Running statistics of batch norms are not weights, and are left alone.

    Args:
        model: the model; its bases are looked at anew at each call, so it may be refined in between.
        roughness: factor of ``∫ ‖W^{(roughness_order)}‖² dt``.
        roughness_order: order of the derivative.
        difference: factor of the sum of squared differences of coefficients.
        difference_order: order of the differences.
        ridge: factor of the sum of squared coefficients.

    Raises:
        ValueError: if a factor is negative, all are 0, nothing in the model is a spline of time, or the orders do not suit its
            bases.
    """

    def __init__(
        self,
        model: nn.Module,
        roughness: float = 0.0,
        roughness_order: int = 2,
        difference: float = 0.0,
        difference_order: int = 2,
        ridge: float = 0.0,
    ) -> None:
        factors = {"roughness": roughness, "difference": difference, "ridge": ridge}
        if min(factors.values()) < 0 or max(factors.values()) == 0:
            raise ValueError(f"penalty {factors}: every factor must be at least 0, and one above 0")
        self.model = model
        self.roughness, self.roughness_order = roughness, roughness_order
        self.difference, self.difference_order = difference, difference_order
        self.ridge = ridge
        self._matrices: dict[Basis, Tensor] = {}
        if not self._weights():
            raise ValueError(
                f"{type(model).__name__} has no weights that are splines of time: there is nothing to penalise"
            )
        for _, basis in self._weights():
            self._matrix(basis)

    def _weights(self) -> list[tuple[nn.Parameter, Basis]]:
        found = spline_coefficients(self.model)
        return [(value, basis) for _, value, basis in found if isinstance(value, nn.Parameter)]

    def _matrix(self, basis: Basis) -> Tensor:
        if basis not in self._matrices:
            matrix = self.ridge * torch.eye(basis.num_basis, dtype=torch.float64)
            if self.roughness:
                matrix += self.roughness * roughness_matrix(basis, self.roughness_order)
            if self.difference:
                matrix += self.difference * difference_matrix(basis, self.difference_order)
            self._matrices[basis] = matrix
        return self._matrices[basis]

    def __call__(self) -> Tensor:
        """``Σ ξᵀ Q ξ`` over all spline weights, at least 0."""
        terms: list[Any] = []
        for coeffs, basis in self._weights():
            matrix = self._matrix(basis).to(coeffs)
            terms.append(((coeffs @ matrix) * coeffs).sum())
        return torch.stack(terms).sum()
