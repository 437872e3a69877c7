"""What every family of outcomes has in common; see the package's head for the notation.

Shapes: η and y ``(*s)``; all families but the categorical have one η for each outcome.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from .links import LINKS, Link, PositiveIdentity

__all__ = ["LEAST_DISPERSION", "Family", "array", "can_look", "check_level", "is_whole", "root_of_falling", "y_log_y"]

LEAST_DISPERSION = 1e-8  # of an estimate: data with less variance than the family can have


class Family:
    """An outcome's distribution, given η. Immutable; `get_family` makes one.

    Args:
        link: one of the family's links; None takes its default.
        dispersion: φ, or α of the negative binomial; None means 1. Only families that have one take it.

    Raises:
        ValueError: a link that does not fit the family, or a dispersion that is not positive and finite, or where the
            family has none.
    """

    name: ClassVar[str]
    links: ClassVar[tuple[str, ...]]  # the first is the default
    canonical_link: ClassVar[str]
    has_dispersion: ClassVar[bool] = False
    positive_mean: ClassVar[bool] = False
    discrete: ClassVar[bool] = True
    outcomes: ClassVar[str]  # in words, for messages
    metric_name: ClassVar[str]

    def __init__(self, link: str | None = None, dispersion: float | None = None) -> None:
        chosen = self.links[0] if link is None else link
        if chosen not in self.links:
            raise ValueError(f"link={link!r} does not fit family {self.name}: must be one of {', '.join(self.links)}")
        if dispersion is not None and not self.has_dispersion:
            raise ValueError(
                f"dispersion={dispersion!r}: the dispersion of family {self.name} is 1 by definition: leave it out"
                + ("; for counts that vary more use negative_binomial" if self.name == "poisson" else "")
            )
        value = 1.0 if dispersion is None else float(dispersion)
        if not math.isfinite(value) or value <= 0:
            raise ValueError(f"dispersion={dispersion!r}: must be positive and finite")
        self.dispersion = value
        self.link = self._make_link(chosen)

    def _make_link(self, name: str) -> Link:
        return PositiveIdentity() if name == "identity" and self.positive_mean else LINKS[name]()

    def with_dispersion(self, dispersion: float) -> Family:
        """The same family and link with another dispersion."""
        return type(self)(self.link.name, dispersion)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of which `get_family` makes the same family."""
        plain: dict[str, Any] = {"name": self.name, "link": self.link.name}
        return plain | ({"dispersion": self.dispersion} if self.has_dispersion else {})

    def __repr__(self) -> str:
        return "Family(" + ", ".join(f"{key}={value!r}" for key, value in self.to_dict().items()) + ")"

    # -----------------------------------------------------------------------------------------------------------------
    # What each family fills in

    def _outcome_ok(self, y: Tensor) -> Tensor:
        """Whether each outcome is a possible one; NaN is not."""
        raise NotImplementedError

    def variance(self, mean: Tensor) -> Tensor:
        """``V(μ)``, elementwise."""
        raise NotImplementedError

    def distribution(self, eta: Tensor) -> Distribution:
        """The outcome's distribution as one of `torch.distributions`, whose own checks, each a wait for a GPU, are off."""
        raise NotImplementedError

    def _log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        raise NotImplementedError

    def _unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        raise NotImplementedError

    def _scipy(self, eta: Tensor) -> Any:
        """The outcome's distribution as a frozen one of `scipy.stats`, for quantiles."""
        raise NotImplementedError

    def _metric(self, y: Tensor, mean: Tensor) -> Tensor:
        raise NotImplementedError

    def _dispersion_by_likelihood(self, y: Tensor, eta: Tensor) -> float:
        raise NotImplementedError

    # -----------------------------------------------------------------------------------------------------------------
    # What all families do

    def check(self, y: Tensor) -> None:
        """Refuse impossible outcomes.

        Raises:
            ValueError: NaN, or an outcome that the family cannot have, with the first one and their number.
        """
        if y.is_complex():
            raise ValueError(f"y has dtype {y.dtype}: family {self.name} takes real numbers")
        bad = ~self._outcome_ok(y)
        if bool(bad.any()):
            first = y[bad][0].item()
            raise ValueError(
                f"y holds {first} ({int(bad.sum())} of {y.numel()} outcomes are not possible): family {self.name} takes "
                f"{self.outcomes}"
            )

    def _align(self, y: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """y and η in one shape and precision, checked where looking at values costs no synchronisation."""
        y, eta = torch.as_tensor(y), self._eta(eta)
        if eta.dim() == y.dim() + 1 and eta.shape[-1] == 1:
            eta = eta.squeeze(-1)
        if y.shape != eta.shape:
            raise ValueError(
                f"y has shape {tuple(y.shape)}, eta {tuple(eta.shape)}: family {self.name} needs the same shape "
                "(a last dimension of 1 that eta alone has is dropped)"
            )
        if can_look(y):
            self.check(y)
        return y.to(device=eta.device, dtype=eta.dtype), eta

    def _eta(self, eta: Tensor) -> Tensor:
        eta = torch.as_tensor(eta)
        if not eta.is_floating_point():
            raise ValueError(f"eta has dtype {eta.dtype}: must be floating point, as a model's output is")
        eta = eta.to(torch.promote_types(eta.dtype, torch.float32))
        if self.link.domain is not None and can_look(eta):
            bad = ~(self.link.valid(eta) | eta.isnan())
            if bool(bad.any()):
                raise ValueError(
                    f"eta holds {eta[bad][0].item():.6g} ({int(bad.sum())} of {eta.numel()}): link {self.link.name} of "
                    f'family {self.name} needs {self.link.domain}; constrain eta, or use link="log"'
                )
        return eta

    def mean(self, eta: Tensor) -> Tensor:
        """``μ = g⁻¹(η)``, in η's shape."""
        return self.link.inverse(self._eta(eta))

    def log_prob(self, y: Tensor, eta: Tensor) -> Tensor:
        """Log-likelihood of each outcome, ``(*s)``, exact also where μ rounds to 0 or 1.

        Raises:
            ValueError: shapes that differ, or (on the CPU; elsewhere call `check`) an impossible outcome.
        """
        return self._log_prob(*self._align(y, eta))

    def nll(self, y: Tensor, eta: Tensor) -> Tensor:
        """Negative log-likelihood, the mean over all outcomes: the loss to train with."""
        return -self.log_prob(y, eta).mean()

    def unit_deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        """``2 φ (log p(y; μ = y) − log p(y; μ))`` of each outcome, ``(*s)``."""
        return self._unit_deviance(*self._align(y, eta)).clamp_min(0)

    def deviance(self, y: Tensor, eta: Tensor) -> Tensor:
        """The deviance: `unit_deviance` summed over all outcomes."""
        return self.unit_deviance(y, eta).sum()

    def pearson_residuals(self, y: Tensor, eta: Tensor) -> Tensor:
        """``(y − μ) / √V(μ)``, in y's shape (categorical: one for each class)."""
        y, eta = self._align(y, eta)
        mean = self.link.inverse(eta)
        return (y - mean) / self.variance(mean).sqrt()

    def deviance_residuals(self, y: Tensor, eta: Tensor) -> Tensor:
        """``sign(y − μ) √(unit deviance)``, ``(*s)``."""
        y, eta = self._align(y, eta)
        return torch.sign(y - self.link.inverse(eta)) * self._unit_deviance(y, eta).clamp_min(0).sqrt()

    def information(self, eta: Tensor) -> Tensor:
        """Fisher information about η in one outcome, ``(dμ/dη)² / (φ V(μ))``, in η's shape."""
        eta = self._eta(eta)
        variance = self.variance(self.link.inverse(eta)) * self.phi
        return self.link.derivative(eta).square() / variance.clamp_min(torch.finfo(eta.dtype).tiny)

    @property
    def phi(self) -> float:
        """φ of Var[y] = φ V(μ)."""
        return self.dispersion

    def sample(self, eta: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Outcomes drawn with torch's random generator: ``(*sample_shape, *s)``."""
        with torch.no_grad():
            return self.distribution(self._eta(eta)).sample(sample_shape)

    def interval(self, eta: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central predictive interval that holds an outcome with probability ``level`` (discrete ones: at least).

        Returns:
            Its lowest and highest outcome, each in η's shape.

        Raises:
            ValueError: unless 0 < level < 1.
        """
        check_level(level)
        eta = self._eta(eta.detach())
        known = self._scipy(eta)
        low, high = (known.ppf(q) for q in ((1 - level) / 2, (1 + level) / 2))
        return tuple(torch.as_tensor(end, dtype=eta.dtype, device=eta.device) for end in (low, high))  # type: ignore[return-value]

    def interval_level(self, y: Tensor, eta: Tensor) -> Tensor:
        """The level from which on the interval holds each outcome, ``(*s)`` float64 in [0, 1], on the CPU.

        It is uniform, where the model is right and outcomes are continuous; `gode_zoo.calibration` is built on it.
        """
        y, eta = self._align(y, eta.detach())
        known, outcome = self._scipy(eta), y.cpu().double().numpy()
        # An outcome y is held while its lower tail P(Y ≤ y) and its upper tail P(Y ≥ y) are at least (1 − level) / 2.
        step = 1.0 if self.discrete else 0.0
        tail = torch.as_tensor(known.cdf(outcome)).minimum(torch.as_tensor(known.sf(outcome - step)))
        return (1 - 2 * tail).clamp(0, 1)

    def estimate_dispersion(
        self, y: Tensor, eta: Tensor, method: str = "moment", num_parameters: int | float = 0
    ) -> float:
        """Estimate the dispersion from outcomes and the η fitted to them.

        Args:
            y: outcomes.
            eta: fitted η.
            method: ``"moment"``, the dispersion at which Pearson's ``Σ (y − μ)² / Var[y]`` is n − p; or
                ``"likelihood"``, its maximum-likelihood estimate at the given η.
            num_parameters: p, the (effective) number of parameters that were fitted; the moment estimate alone uses it.

        Returns:
            At least 1e-8: for the negative binomial that stands for no more variance than the Poisson's.

        Raises:
            ValueError: a family without dispersion, an unknown method, or p that leaves no degree of freedom.
        """
        if not self.has_dispersion:
            raise ValueError(f"family {self.name} has dispersion 1 by definition: nothing to estimate")
        if method not in ("moment", "likelihood"):
            raise ValueError(f'method={method!r}: must be "moment" or "likelihood"')
        y, eta = (part.detach().double().cpu() for part in self._align(y, eta))
        free = y.numel() - num_parameters
        if num_parameters < 0 or free <= 0:
            raise ValueError(
                f"num_parameters={num_parameters} with {y.numel()} outcomes: must be at least 0 and leave a degree of freedom"
            )
        moment = method == "moment"
        value = self._dispersion_by_moment(y, eta, free) if moment else self._dispersion_by_likelihood(y, eta)
        return max(value, LEAST_DISPERSION)

    def _dispersion_by_moment(self, y: Tensor, eta: Tensor, free: float) -> float:
        mean = self.link.inverse(eta)
        return float(((y - mean).square() / self.variance(mean)).sum() / free)

    def metric(self, y: Tensor, eta: Tensor) -> float:
        """The family's own figure, named `metric_name`."""
        y, eta = self._align(y, eta.detach())
        return float(self._metric(y, self.link.inverse(eta)))


def can_look(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device, and are values at all."""
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
        and type(values) in (Tensor, torch.nn.Parameter)
    )


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: must lie between 0 and 1, such as 0.95")


def array(values: Tensor) -> Any:
    return values.cpu().double().numpy()


def is_whole(y: Tensor) -> Tensor:
    if not y.is_floating_point():
        return y >= 0
    return (y >= 0) & (y == y.floor()) & y.isfinite()


def y_log_y(y: Tensor) -> Tensor:
    return torch.special.xlogy(y, y)


def root_of_falling(function: Callable[[float], float]) -> float:
    """``e^x`` at the root of a function that falls in x; the least dispersion where it is negative everywhere."""
    from scipy.optimize import brentq

    low, high = math.log(LEAST_DISPERSION), math.log(1e8)
    if function(low) <= 0:
        return LEAST_DISPERSION
    return math.exp(brentq(function, low, high, xtol=1e-13) if function(high) < 0 else high)
