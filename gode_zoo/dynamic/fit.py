"""What fitting a dynamic GODE gives: curves, states and means with standard errors, and predictions.

Shapes: as in `dynamic`: d states, q curves, r unknowns of the start, n times, J outcomes at a time; β = (c, a) ``(p,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..families import Family
from ..families.base import check_level
from .scoring import Scored

if TYPE_CHECKING:
    from . import GODEModel

__all__ = ["Band", "DynamicFit", "Observed", "Plan", "Prediction"]


class Band(NamedTuple):
    """An estimate ``(n, k)``, its standard error, and pointwise limits."""

    estimate: Tensor
    standard_error: Tensor
    low: Tensor
    high: Tensor


class Prediction(NamedTuple):
    """Means of outcomes ``(n, J)``, and the limits between which a new outcome lies with the level's probability."""

    mean: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Plan:
    """Grids between the wanted times, and the bases at all stages and at the wanted times."""

    grids: list[list[float]]
    starts_at_t0: bool
    stage_designs: list[Tensor]
    times: Tensor
    designs: list[Tensor]


@dataclass(frozen=True)
class Observed:
    """Data as given, and the distinct times, each row's place among them, what was seen, and the outcomes seen."""

    times_given: Tensor
    y_given: Tensor
    times: Tensor
    place: Tensor
    seen: Tensor
    y: Tensor

    def pick(self, eta: Tensor) -> Tensor:
        """η at the distinct times to η of the outcomes seen."""
        return eta[self.place][self.seen]


class DynamicFit:
    """A fitted `GODEModel`: curves, states and means with standard errors, and predictions.

    Attributes:
        coeffs: the curves' coefficients, one ``(m_j,)`` a curve.
        initial: the start's unknowns ``(r,)``.
        covariance: of β = (coefficients, start), ``(p, p)``.
        family: with its dispersion as estimated.
        smoothing: λ; ``edf``, the effective number of parameters; ``deviance``; ``num_iterations`` of the last solve.
        times, y: the data, as given.
    """

    def __init__(
        self, model: GODEModel, family: Family, result: Scored, covariance: Tensor, observed: Observed
    ) -> None:
        self.model = model
        self.family = family
        self.beta = result.beta.detach()
        self.coeffs, self.initial = model._split(self.beta)
        self.covariance = covariance
        self.smoothing, self.edf = result.smoothing, result.edf
        self.deviance, self.num_iterations = result.deviance, result.num_iterations
        self.times, self.y = observed.times_given, observed.y_given

    @cached_property
    def initial_standard_error(self) -> Tensor:
        """Standard errors of ``initial``, ``(r,)``."""
        return self.covariance.diagonal()[sum(self.model.sizes) :].sqrt()

    def theta(self, times: Tensor | Sequence[float], level: float = 0.95) -> Band:
        """The curves at any times of the span, ``(n, q)``, with pointwise bands."""
        when, _, _ = self._times(times)
        designs = self.model._designs(when)
        estimate = self.model._curves(designs, self.coeffs)
        blocks, first = [], 0
        for design, size in zip(designs, self.model.sizes, strict=True):
            block = self.covariance[first : first + size, first : first + size]
            blocks.append(torch.einsum("ni,ij,nj->n", design, block, design).clamp_min(0).sqrt())
            first += size
        return _band(estimate, torch.stack(blocks, dim=-1), level)

    def state(self, times: Tensor | Sequence[float], level: float = 0.95) -> Band:
        """The states at any times of the span, ``(n, d)``, with pointwise bands by the delta method."""
        _, plan, place = self._times(times)
        return self._delta(lambda beta: self.model._states(beta, plan), place, level)

    def mean(self, times: Tensor | Sequence[float], level: float = 0.95) -> Band:
        """The means of outcomes, ``(n, J)``; the band is made on η's scale, the standard error is the mean's."""
        _, plan, place = self._times(times)
        eta = self._delta(lambda beta: self.model._eta(beta, plan), place, level)
        ends = [self.family.mean(end) for end in (eta.low, eta.high)]
        return Band(
            self.family.mean(eta.estimate),
            eta.standard_error * self.family.link.derivative(eta.estimate).abs(),
            torch.minimum(*ends),
            torch.maximum(*ends),
        )

    def predict(
        self, times: Tensor | Sequence[float], level: float = 0.95, num_draws: int = 1000, seed: int = 0
    ) -> Prediction:
        """Predict new outcomes at any times of the span; after the last observation that is a forecast.

        Unknowns are drawn from their normal approximation, an outcome from each draw, and the limits are quantiles.

        Args:
            times: ``(n,)``.
            level: probability that an outcome lies within the limits.
            num_draws: number of draws, at least 100.
            seed: of the draws; torch's own random state stays as it is.

        Raises:
            ValueError: on a value outside these limits.
            RuntimeError: where more than one draw in twenty has no finite solution: the unknowns are too uncertain.
        """
        check_level(level)
        if num_draws < 100:
            raise ValueError(f"num_draws={num_draws}: must be at least 100")
        _, plan, place = self._times(times)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            noise = torch.randn(num_draws, len(self.beta), dtype=torch.float64)
            betas = self.beta + noise @ torch.linalg.cholesky(self.covariance).T
            etas = torch.func.vmap(lambda beta: self.model._eta(beta, plan))(betas)[:, place]  # (draws, n, J)
            good = (etas.isfinite() & self.family.link.valid(etas)).flatten(1).all(dim=1)
            if int(good.sum()) < 0.95 * num_draws:
                raise RuntimeError(
                    f"{num_draws - int(good.sum())} of {num_draws} draws have no finite solution up to t={max(plan.times)}: "
                    "the unknowns are too uncertain that far; forecast less far, or observe more"
                )
            outcomes = self.family.sample(etas[good])
        limits = torch.quantile(outcomes, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)
        centre = self.family.mean(self.model._eta(self.beta, plan)[place])
        return Prediction(centre, limits[0], limits[1])

    def _times(self, times: Any) -> tuple[Tensor, Plan, Tensor]:
        when = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        if when.dim() != 1 or not len(when):
            raise ValueError(f"times has shape {tuple(when.shape)}: must be (n,), n at least 1")
        self.model._check_times(when)
        distinct, place = torch.unique(when, return_inverse=True)
        return when, self.model._plan(distinct), place

    def _delta(self, function: Callable[[Tensor], Tensor], place: Tensor, level: float) -> Band:
        """A function of β ``(n, k)`` with standard errors ``√(J V Jᵀ)``."""
        jacobian, estimate = torch.func.jacfwd(lambda beta: (function(beta),) * 2, has_aux=True)(self.beta)
        variance = torch.einsum("nki,ij,nkj->nk", jacobian, self.covariance, jacobian)
        return _band(estimate[place], variance.clamp_min(0).sqrt()[place], level)


def _band(estimate: Tensor, standard_error: Tensor, level: float) -> Band:
    check_level(level)
    width = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))) * standard_error
    return Band(estimate, standard_error, estimate - width, estimate + width)
