"""Counts: Poisson and negative binomial."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions import NegativeBinomial as NegativeBinomialDistribution
from torch.distributions import Poisson as PoissonDistribution

from .base import LEAST_DISPERSION, Family, array, is_whole, root_of_falling, y_log_y
from .links import LINKS, Link, NegativeBinomialLink

__all__ = ["NegativeBinomial", "Poisson"]


class Poisson(Family):
    """Counts whose variance is their mean; the metric is the mean absolute error."""

    name = "poisson"
    links = ("log", "identity", "sqrt")
    canonical_link = "log"
    positive_mean = True
    outcomes = "counts: whole numbers of at least 0"
    metric_name = "mae"

    def _outcome_ok(self, y: Tensor) -> Tensor:
        return is_whole(y)

    def variance(self, mean: Tensor) -> Tensor:
        return mean

    def distribution(self, eta: Tensor) -> Distribution:
        return PoissonDistribution(self.link.inverse(eta), validate_args=False)

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        # torch's own takes the logarithm of a rate that may have rounded to 0.
        return y * self.link.log_inverse(eta) - self.link.inverse(eta) - torch.lgamma(y + 1)

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        return 2 * (y_log_y(y) - y * self.link.log_inverse(eta) - y + self.link.inverse(eta))

    def _scipy(self, eta: Tensor) -> Any:
        from scipy import stats

        return stats.poisson(array(self.link.inverse(eta)))

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        return (y - mean).abs().mean()


class NegativeBinomial(Family):
    """Counts with variance ``μ + α μ²``; the metric is the mean absolute error."""

    name = "negative_binomial"
    links = ("log", "nbinom")
    canonical_link = "nbinom"
    has_dispersion = True
    positive_mean = True
    outcomes = Poisson.outcomes
    metric_name = "mae"

    def _make_link(self, name: str) -> Link:
        return NegativeBinomialLink(self.dispersion) if name == "nbinom" else LINKS[name]()

    def _outcome_ok(self, y: Tensor) -> Tensor:
        return is_whole(y)

    def variance(self, mean: Tensor) -> Tensor:
        return mean + self.dispersion * mean.square()

    @property
    def phi(self) -> float:
        return 1.0

    def _logits(self, eta: Tensor) -> Tensor:
        """``log(α μ)``."""
        return self.link.log_inverse(eta) + math.log(self.dispersion)

    def distribution(self, eta: Tensor) -> Distribution:
        return NegativeBinomialDistribution(1 / self.dispersion, logits=self._logits(eta), validate_args=False)

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        return self.distribution(eta).log_prob(y)

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        softplus = torch.nn.functional.softplus(self._logits(eta))  # log(1 + α μ)
        shape = y + 1 / self.dispersion
        return 2 * (y_log_y(y) - y * self.link.log_inverse(eta) + shape * (softplus - torch.log1p(self.dispersion * y)))

    def _scipy(self, eta: Tensor) -> Any:
        from scipy import stats

        return stats.nbinom(1 / self.dispersion, array(torch.sigmoid(-self._logits(eta))))

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        return (y - mean).abs().mean()

    def _dispersion_by_moment(self, y: Tensor, eta: Tensor, free: float) -> float:
        mean = self.link.inverse(eta)
        squares = (y - mean).square()

        def excess(log_alpha: float) -> float:
            return float((squares / (mean + math.exp(log_alpha) * mean.square())).sum() - free)

        return root_of_falling(excess)

    def _dispersion_by_likelihood(self, y: Tensor, eta: Tensor) -> float:
        from scipy.optimize import minimize_scalar

        log_mean = self.link.log_inverse(eta)

        def loss(log_alpha: float) -> float:
            return float(NegativeBinomial(dispersion=math.exp(log_alpha)).nll(y, log_mean))

        low, high = math.log(LEAST_DISPERSION), math.log(1e6)
        # Bounded search finds a local minimum; a coarse look says near which one is lowest.
        grid = torch.linspace(low, high, 41, dtype=torch.float64).tolist()
        best = min(range(len(grid)), key=lambda i: loss(grid[i]))
        around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
        return math.exp(minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-10}).x)
