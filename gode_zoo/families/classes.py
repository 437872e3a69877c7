"""Classes: Bernoulli (two of them) and categorical."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Distribution

from .base import Family, array, can_look, check_level, is_whole, y_log_y
from .links import ProbabilityLink

__all__ = ["Bernoulli", "Categorical"]


class Bernoulli(Family):
    """Yes or no, or the share of yes among equally many trials; the metric is the accuracy in %."""

    name = "bernoulli"
    links = ("logit", "probit", "cloglog")
    canonical_link = "logit"
    outcomes = "0, 1, or probabilities between"
    metric_name = "accuracy"
    link: ProbabilityLink

    def _outcome_ok(self, y: Tensor) -> Tensor:
        return (y >= 0) & (y <= 1)

    def variance(self, mean: Tensor) -> Tensor:
        return mean * (1 - mean)

    def distribution(self, eta: Tensor) -> Distribution:
        return BernoulliDistribution(probs=self.link.inverse(eta), validate_args=False)

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        return y * self.link.log_inverse(eta) + (1 - y) * self.link.log_complement(eta)

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        return 2 * (y_log_y(y) + y_log_y(1 - y) - self._log_prob(y, eta))

    def information(self, eta: Tensor) -> Tensor:
        eta = self._eta(eta)
        # V(μ) from logarithms: 1 − μ rounds to 0 long before it is 0.
        log_variance = self.link.log_inverse(eta) + self.link.log_complement(eta)
        tiny = torch.finfo(eta.dtype).tiny
        return torch.exp(2 * torch.log(self.link.derivative(eta).clamp_min(tiny)) - log_variance)

    def _scipy(self, eta: Tensor) -> Any:
        from scipy import stats

        return stats.bernoulli(array(self.link.inverse(eta)))

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        return 100 * ((mean >= 0.5) == (y >= 0.5)).to(mean.dtype).mean()


class Categorical(Family):
    """One of C classes; the metric is the accuracy in %."""

    name = "categorical"
    links = ("softmax",)
    canonical_link = "softmax"
    outcomes = "class numbers 0 to C − 1, or rows of C probabilities that sum to 1 (one-hot)"
    metric_name = "accuracy"

    def _align(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """y as rows of shares ``(*s, C)``."""
        y, eta = torch.as_tensor(y), self._eta(eta)
        if eta.dim() < 1 or (y.shape != eta.shape and y.shape != eta.shape[:-1]):
            raise ValueError(
                f"y has shape {tuple(y.shape)}, eta {tuple(eta.shape)}: family categorical needs eta (*s, C), and y (*s) "
                "of class numbers or (*s, C) of probabilities"
            )
        indices = y.shape == eta.shape[:-1]
        if can_look(y):
            self._check_classes(y, eta.shape[-1]) if indices else self._check_shares(y)
        if not indices:
            return y.to(device=eta.device, dtype=eta.dtype), eta
        classes = y.to(device=eta.device, dtype=torch.int64)
        return torch.nn.functional.one_hot(classes, eta.shape[-1]).to(eta.dtype), eta

    def _outcome_ok(self, y: Tensor) -> Tensor:
        return is_whole(y) | ((y >= 0) & (y <= 1))

    def _check_classes(self, y: Tensor, num_classes: int) -> None:
        self._refuse(y, ~(is_whole(y) & (y < num_classes)), f"class numbers 0 to {num_classes - 1}")

    def _check_shares(self, y: Tensor) -> None:
        self._refuse(y, ~((y >= 0) & (y <= 1)), "probabilities between 0 and 1 in rows")
        sums = y.sum(dim=-1, dtype=torch.float64)
        self._refuse(sums, (sums - 1).abs() > 1e-4, "rows that sum to 1")

    def _refuse(self, y: Tensor, bad: Tensor, allowed: str) -> None:
        if bool(bad.any()):
            raise ValueError(
                f"y holds {y[bad][0].item()} ({int(bad.sum())} of {y.numel()}): family categorical takes {allowed} here"
            )

    def variance(self, mean: Tensor) -> Tensor:
        return mean * (1 - mean)

    def distribution(self, eta: Tensor) -> Distribution:
        return CategoricalDistribution(logits=eta, validate_args=False)

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        # 0 · (−∞) is 0 here: a class that cannot be, and is not.
        logs = self.link.log_inverse(eta)
        return torch.where(y == 0, torch.zeros_like(logs), y * logs).sum(dim=-1)

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        return 2 * (y_log_y(y).sum(dim=-1) - self._log_prob(y, eta))

    def deviance_residuals(self, y: Tensor, eta: Tensor) -> Tensor:
        """``√(unit deviance)``, ``(*s)``: among classes there is no sign."""
        return self.unit_deviance(y, eta).sqrt()

    def information(self, eta: Tensor) -> Tensor:
        """Fisher information about η in one outcome, ``diag(μ) − μ μᵀ``: ``(*s, C)`` to ``(*s, C, C)``."""
        mean = self.mean(eta)
        return torch.diag_embed(mean) - mean[..., :, None] * mean[..., None, :]

    def interval(self, eta: Tensor, level: float = 0.95) -> Any:
        """The likeliest classes that together have probability ``level`` or more, as a mask ``(*s, C)``."""
        check_level(level)
        return self._level_of_classes(eta) <= level

    def interval_level(self, y: Tensor, eta: Tensor) -> Tensor:
        """The level from which on the mask of `interval` holds each outcome's (likeliest) class, ``(*s)``."""
        shares, eta = self._align(y, eta)
        return self._level_of_classes(eta).gather(-1, shares.argmax(dim=-1, keepdim=True)).squeeze(-1).cpu().double()

    def _level_of_classes(self, eta: Tensor) -> Tensor:
        """The probability of all classes that are likelier than each one, ``(*s, C)``."""
        ordered, order = self.mean(eta.detach()).sort(dim=-1, descending=True)
        before = (ordered.cumsum(dim=-1) - ordered).clamp_min(0)
        return torch.zeros_like(before).scatter(-1, order, before)

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        return 100 * (mean.argmax(dim=-1) == y.argmax(dim=-1)).to(mean.dtype).mean()
