"""What a model said of images whose outcomes are known, and the figures that follow.

    p = OutcomePredictions(family, y, eta)
    p.error, p.loss, p.score, p.means, p.interval(0.95), p.extremes(12)

Shapes: y and η (N,), float32, on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .calibration import Coverage
from .families import Family
from .outcomes import OutcomeScore, score_outcomes

__all__ = ["OutcomePredictions"]


@dataclass(frozen=True)
class OutcomePredictions:
    """Outcomes and predictors of N images; `coverage` is known at a run's end, from `calibrate`."""

    family: Family
    y: Tensor
    eta: Tensor
    coverage: tuple[Coverage, ...] = ()

    @property
    def score(self) -> OutcomeScore:
        """Deviance, that of the constant mean, and the family's own metric."""
        return score_outcomes(self.family, self.y, self.eta)

    @property
    def error(self) -> float:
        """Mean deviance."""
        return self.score.error

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood."""
        return float(self.family.nll(self.y.double(), self.eta.double()))

    @property
    def means(self) -> Tensor:
        """Predicted means, (N,)."""
        return self.family.mean(self.eta)

    def asked(self, level: float) -> float:
        """The level to ask the family for: the calibrated one, where there is any."""
        return next((row.asked for row in self.coverage if row.level == level and row.asked is not None), level)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Lowest and highest outcome of the predictive intervals, calibrated where they can be, each (N,)."""
        return self.family.interval(self.eta, self.asked(level))

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """The images with the smallest and with the largest deviance, most extreme first."""
        order = self.family.unit_deviance(self.y, self.eta).argsort(stable=True).tolist()
        return order[:count], order[::-1][:count]
