"""Measured numbers: Gaussian and Gamma."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.distributions import Gamma as GammaDistribution

from .base import Family, array, root_of_falling

__all__ = ["Gamma", "Gaussian"]


class Gaussian(Family):
    """Normal outcomes with variance φ; the metric is the root mean square error."""

    name = "gaussian"
    links = ("identity", "log", "inverse")
    canonical_link = "identity"
    has_dispersion = True
    discrete = False
    outcomes = "finite numbers"
    metric_name = "rmse"

    def _outcome_ok(self, y: Tensor) -> Tensor:
        return y.isfinite()

    def variance(self, mean: Tensor) -> Tensor:
        return torch.ones_like(mean)

    def distribution(self, eta: Tensor) -> Distribution:
        return Normal(self.link.inverse(eta), math.sqrt(self.dispersion), validate_args=False)

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        return self.distribution(eta).log_prob(y)

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        return (y - self.link.inverse(eta)).square()

    def _scipy(self, eta: Tensor) -> Any:
        from scipy import stats

        return stats.norm(array(self.link.inverse(eta)), math.sqrt(self.dispersion))

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        return (y - mean).square().mean().sqrt()

    def _dispersion_by_likelihood(self, y: Tensor, eta: Tensor) -> float:
        return float(self._unit_deviance(y, eta).mean())


class Gamma(Family):
    """Positive outcomes with a constant coefficient of variation √φ; the metric is the mean relative error in %."""

    name = "gamma"
    links = ("log", "inverse", "identity")
    canonical_link = "inverse"
    has_dispersion = True
    discrete = False
    positive_mean = True
    outcomes = "finite numbers of more than 0"
    metric_name = "mape"

    def _outcome_ok(self, y: Tensor) -> Tensor:
        return (y > 0) & y.isfinite()

    def variance(self, mean: Tensor) -> Tensor:
        return mean.square()

    def distribution(self, eta: Tensor) -> Distribution:
        shape = torch.full_like(eta, 1 / self.dispersion)
        return GammaDistribution(shape, shape * torch.exp(-self.link.log_inverse(eta)), validate_args=False)

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        # In log μ, for torch's own takes the logarithm of a rate that may have rounded to 0.
        shape, ratio = 1 / self.dispersion, torch.log(y) - self.link.log_inverse(eta)  # log (y / μ)
        return shape * (math.log(shape) + ratio - torch.exp(ratio)) - math.lgamma(shape) - torch.log(y)

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        ratio = torch.log(y) - self.link.log_inverse(eta)
        return 2 * (torch.expm1(ratio) - ratio)

    def _scipy(self, eta: Tensor) -> Any:
        from scipy import stats

        return stats.gamma(1 / self.dispersion, scale=self.dispersion * array(self.link.inverse(eta)))

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        return 100 * ((y - mean).abs() / y).mean()

    def _dispersion_by_likelihood(self, y: Tensor, eta: Tensor) -> float:
        half = float(self._unit_deviance(y, eta).mean()) / 2  # = log a − digamma(a) at the estimate, a = 1/φ

        def excess(log_dispersion: float) -> float:
            shape = math.exp(-log_dispersion)
            return half - math.log(shape) + float(torch.digamma(torch.tensor(shape, dtype=torch.float64)))

        return root_of_falling(excess)
