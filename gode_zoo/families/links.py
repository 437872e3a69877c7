"""Link functions: from the linear predictor η of a head to the mean μ of an outcome, ``g(μ) = η``.

Each link gives ``g``, its inverse, ``log μ`` (and ``log(1 − μ)`` where μ is a probability) computed from η directly, so
that a likelihood stays exact where μ itself would round to 0 or 1 or overflow, and ``dμ/dη``::

    identity μ = η           log      μ = e^η          inverse  μ = 1/η          sqrt    μ = η²
    logit    μ = 1/(1+e^−η)  probit   μ = Φ(η)         cloglog  μ = 1 − e^(−e^η)
    softmax  μ = e^η / Σ e^η (last dimension)          nbinom   μ = 1 / (α (e^−η − 1))

Shapes: everything is elementwise, ``(*s)`` to ``(*s)``; softmax works along the last dimension.

Source: McCullagh and Nelder, "Generalized Linear Models" (1989), chapter 2.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LINKS", "Link"]


def _log1m_exp(x: Tensor) -> Tensor:
    """``log(1 − e^x)`` for x < 0, without cancellation at either end; gradients stay finite."""
    near = x > -math.log(2.0)
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, torch.full_like(x, -1.0)))),
        torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, -1.0), x))),
    )


class Link:
    """A link; subclasses fill in the formulas of the module's head.

    ``domain`` is the condition on η, in words, where not every η has a mean. Such a link suits a predictor that is
    fitted under the constraint, not the free output of a network.
    """

    name = ""
    domain: str | None = None

    def forward(self, mean: Tensor) -> Tensor:
        """``η = g(μ)``."""
        raise NotImplementedError

    def inverse(self, eta: Tensor) -> Tensor:
        """``μ = g⁻¹(η)``."""
        raise NotImplementedError

    def log_inverse(self, eta: Tensor) -> Tensor:
        """``log μ``."""
        return torch.log(self.inverse(eta))

    def derivative(self, eta: Tensor) -> Tensor:
        """``dμ/dη``."""
        raise NotImplementedError

    def valid(self, eta: Tensor) -> Tensor:
        """Whether each η has a mean."""
        return torch.ones_like(eta, dtype=torch.bool)

    def __repr__(self) -> str:
        return self.name


class Identity(Link):
    name = "identity"

    def forward(self, mean: Tensor) -> Tensor:
        return mean

    def inverse(self, eta: Tensor) -> Tensor:
        return eta

    def derivative(self, eta: Tensor) -> Tensor:
        return torch.ones_like(eta)


class PositiveIdentity(Identity):
    """The identity where the mean must be positive."""

    domain = "η > 0"

    def valid(self, eta: Tensor) -> Tensor:
        return eta > 0


class Log(Link):
    name = "log"

    def forward(self, mean: Tensor) -> Tensor:
        return torch.log(mean)

    def inverse(self, eta: Tensor) -> Tensor:
        return torch.exp(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        return eta

    def derivative(self, eta: Tensor) -> Tensor:
        return torch.exp(eta)


class Inverse(Link):
    name = "inverse"
    domain = "η > 0"

    def forward(self, mean: Tensor) -> Tensor:
        return 1 / mean

    def inverse(self, eta: Tensor) -> Tensor:
        return 1 / eta

    def log_inverse(self, eta: Tensor) -> Tensor:
        return -torch.log(eta)

    def derivative(self, eta: Tensor) -> Tensor:
        return -1 / eta.square()

    def valid(self, eta: Tensor) -> Tensor:
        return eta > 0


class Sqrt(Link):
    name = "sqrt"
    domain = "η > 0"

    def forward(self, mean: Tensor) -> Tensor:
        return torch.sqrt(mean)

    def inverse(self, eta: Tensor) -> Tensor:
        return eta.square()

    def log_inverse(self, eta: Tensor) -> Tensor:
        return 2 * torch.log(eta)

    def derivative(self, eta: Tensor) -> Tensor:
        return 2 * eta

    def valid(self, eta: Tensor) -> Tensor:
        return eta > 0


class ProbabilityLink(Link):
    """A link whose mean is a probability: it also gives ``log(1 − μ)``."""

    def log_complement(self, eta: Tensor) -> Tensor:
        """``log(1 − μ)``."""
        raise NotImplementedError


class Logit(ProbabilityLink):
    name = "logit"

    def forward(self, mean: Tensor) -> Tensor:
        return torch.logit(mean)

    def inverse(self, eta: Tensor) -> Tensor:
        return torch.sigmoid(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        return F.logsigmoid(eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        return F.logsigmoid(-eta)

    def derivative(self, eta: Tensor) -> Tensor:
        return torch.sigmoid(eta) * torch.sigmoid(-eta)


class Probit(ProbabilityLink):
    name = "probit"

    def forward(self, mean: Tensor) -> Tensor:
        return torch.special.ndtri(mean)

    def inverse(self, eta: Tensor) -> Tensor:
        return torch.special.ndtr(eta)

    def log_inverse(self, eta: Tensor) -> Tensor:
        return torch.special.log_ndtr(eta)

    def log_complement(self, eta: Tensor) -> Tensor:
        return torch.special.log_ndtr(-eta)

    def derivative(self, eta: Tensor) -> Tensor:
        return torch.exp(-eta.square() / 2) / math.sqrt(2 * math.pi)


class CLogLog(ProbabilityLink):
    name = "cloglog"

    def forward(self, mean: Tensor) -> Tensor:
        return torch.log(-torch.log1p(-mean))

    def _hazard(self, eta: Tensor) -> Tensor:
        # e^η, held below overflow: 1 − μ is 0 to any precision long before.
        return torch.exp(eta.clamp(max=0.9 * math.log(torch.finfo(eta.dtype).max)))

    def inverse(self, eta: Tensor) -> Tensor:
        return -torch.expm1(-self._hazard(eta))

    def log_inverse(self, eta: Tensor) -> Tensor:
        # Where e^η is below rounding, μ = e^η.
        small = eta < math.log(torch.finfo(eta.dtype).eps)
        return torch.where(small, eta, _log1m_exp(-self._hazard(torch.where(small, torch.zeros_like(eta), eta))))

    def log_complement(self, eta: Tensor) -> Tensor:
        return -self._hazard(eta)

    def derivative(self, eta: Tensor) -> Tensor:
        hazard = self._hazard(eta)
        return hazard * torch.exp(-hazard)


class Softmax(Link):
    name = "softmax"

    def forward(self, mean: Tensor) -> Tensor:
        return torch.log(mean)

    def inverse(self, eta: Tensor) -> Tensor:
        return torch.softmax(eta, dim=-1)

    def log_inverse(self, eta: Tensor) -> Tensor:
        return torch.log_softmax(eta, dim=-1)


class NegativeBinomialLink(Link):
    """The canonical link of the negative binomial with dispersion α: ``η = log(α μ / (1 + α μ))``."""

    name = "nbinom"
    domain = "η < 0"

    def __init__(self, dispersion: Any) -> None:
        self.dispersion = dispersion

    def forward(self, mean: Tensor) -> Tensor:
        return -torch.log1p(1 / (self.dispersion * mean))

    def inverse(self, eta: Tensor) -> Tensor:
        return 1 / (self.dispersion * torch.expm1(-eta))

    def log_inverse(self, eta: Tensor) -> Tensor:
        return eta - _log1m_exp(eta) - math.log(self.dispersion)

    def derivative(self, eta: Tensor) -> Tensor:
        mean = self.inverse(eta)
        return mean + self.dispersion * mean.square()

    def valid(self, eta: Tensor) -> Tensor:
        return eta < 0


LINKS: dict[str, type[Link]] = {
    link.name: link for link in (Identity, Log, Inverse, Sqrt, Logit, Probit, CLogLog, Softmax, NegativeBinomialLink)
}
