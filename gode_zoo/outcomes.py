"""Images with an outcome that is no class: a number or a count for each, read from the names of class folders.

    data = with_outcomes(load_dataset("counts", "train"), family)     # folders 0, 1, 2, 7 …: labels 0.0, 1.0, 2.0, 7.0 …
    y, eta = predictors(model, data, mean, std)
    score_outcomes(model.family, y, eta)                              # deviance, null deviance, the family's own metric

Shapes: y and η ``(N,)``, float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import data as zoo_data
from .families import Bernoulli, Categorical, Family, get_family

__all__ = ["OutcomeScore", "image_family", "predictors", "score_outcomes", "with_outcomes"]


@dataclass(frozen=True)
class OutcomeScore:
    """Deviance of ``total`` outcomes, that of the best constant mean, and the family's own metric."""

    deviance: float
    null_deviance: float
    metric_name: str
    metric: float
    total: int

    @property
    def error(self) -> float:
        """Deviance of one outcome, their mean: what stands where a classifier has its error."""
        return self.deviance / self.total

    def row(self, prefix: str) -> dict[str, Any]:
        """Plain values for a run's log, from which `from_row` makes the score again."""
        values: dict[str, Any] = {"error": self.error, "deviance": self.deviance, "null_deviance": self.null_deviance}
        values |= {"metric_name": self.metric_name, "metric": self.metric, "total": self.total}
        return {f"{prefix}_{key}": value for key, value in values.items()}

    @staticmethod
    def from_row(row: dict[str, Any], prefix: str) -> OutcomeScore:
        """The score of a `row`."""
        keys = ("deviance", "null_deviance", "metric_name", "metric", "total")
        return OutcomeScore(*(row[f"{prefix}_{key}"] for key in keys))

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {key.removeprefix("_"): value for key, value in self.row("").items()}

    def __str__(self) -> str:
        return (
            f"deviance {self.error:.4f} an outcome (constant mean {self.null_deviance / self.total:.4f}), "
            f"{self.metric_name} {self.metric:.4g}"
        )


def image_family(family: Any, num_classes: int) -> Family:
    """The family of a model of images, whose outcomes are one for each image.

    Raises:
        ValueError: no such family, a model that has not one output for it, or a link that leaves half of η without a mean.
    """
    chosen = get_family(family)
    if isinstance(chosen, Categorical):
        return chosen
    if num_classes != 1:
        raise ValueError(
            f"num_classes={num_classes} with family {chosen.name}: an image has one outcome: set num_classes to 1"
        )
    if chosen.link.domain is not None:
        raise ValueError(
            f"link={chosen.link.name!r} of family {chosen.name} needs {chosen.link.domain}, and a network's output is any "
            "number: use the log link"
        )
    return chosen


def with_outcomes(data: zoo_data.ImageData, family: Family) -> zoo_data.ImageData:
    """The same images, labels replaced by outcomes: the names of the class folders, read as numbers.

    Of a Bernoulli outcome the two classes stand for 0 and 1 whatever their names; a categorical one stays as it is.

    Raises:
        DataError: a name that is no number, other than two classes for a Bernoulli outcome, or a number that the family
            cannot have.
    """
    if isinstance(family, Categorical):
        return data
    if isinstance(family, Bernoulli):
        if len(data.classes) != 2:
            raise zoo_data.DataError(f"{data.source}: has {len(data.classes)} classes: family bernoulli takes two")
        return replace(data, labels=data.labels.float())
    try:
        values = torch.tensor([float(name) for name in data.classes])
        family.check(values[data.labels.cpu().unique()])
    except ValueError as error:
        raise zoo_data.DataError(
            f"{data.source}: family {family.name} reads outcomes from the names of class folders: {error}: rename the folders"
        ) from error
    return replace(data, labels=values.to(data.labels.device)[data.labels])


def predictors(
    model: nn.Module, data: zoo_data.ImageData, mean: tuple[float, ...], std: tuple[float, ...], batch_size: int = 250
) -> tuple[Tensor, Tensor]:
    """Outcomes and η of all of ``data``, on the CPU. The model is left in evaluation mode."""
    model.eval()
    with torch.no_grad():
        etas = [
            model(zoo_data.normalize(images, mean, std)).float()
            for images, _ in zoo_data.batches(data, batch_size, shuffle=False, drop_last=False)
        ]
    return data.labels.cpu(), torch.cat(etas).squeeze(1).cpu()


def score_outcomes(family: Family, y: Tensor, eta: Tensor) -> OutcomeScore:
    """The score of η, beside that of the outcomes' own mean as a constant."""
    y, eta = y.double(), eta.double()
    constant = family.link.forward(y.mean()).expand(len(y))
    null_deviance = (
        float(family.deviance(y, constant)) if bool(constant.isfinite().all()) else 0.0
    )  # all y are one bound
    return OutcomeScore(
        float(family.deviance(y, eta)), null_deviance, family.metric_name, family.metric(y, eta), len(y)
    )
