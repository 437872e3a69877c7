"""What the labels of a fine-tuning run mean: names of classes, or outcomes of an exponential family.

    targets = find_targets(get_family("poisson"), source)      # every label looked at
    targets = targets.fitted(train_labels, "counts.csv")       # where outcomes lie, and how far apart
    targets.loss(model(x), y), targets.predict(model, data, mean, std)

A model of outcomes has one output z, and trains with the negative log-likelihood of its family at

    η = offset + scale · z,    offset = g(m),    scale = s / (dμ/dη at m), at most 1 where η is not μ

with the mean m and the standard deviation s of the training outcomes, so that it begins at the constant mean, and dollars
train as thousands of dollars do. The loss is divided by its unit, the root mean square of its derivative by z at the constant
mean, which makes learning rates mean much the same for all families. `folded` puts offset and scale into the last layer: the
output of what is published is η.

Shapes: B images of a batch; outputs (B, classes) or (B, 1); labels (B,), int64 of classes, float32 of outcomes.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..calibration import calibrate
from ..class_predictions import ClassPredictions, predict_classes
from ..data import DataError, ImageData
from ..families import Bernoulli, Categorical, Family
from ..images.sources import ImageSource, Sample, natural_key
from ..outcome_predictions import OutcomePredictions
from ..outcomes import predictors
from ..report.classes import class_findings
from ..report.outcomes import outcome_findings
from ..report.parts import Findings
from ..run_state import RunState
from .splits import describe_balance, describe_outcomes, split_outcomes, split_samples

__all__ = ["ClassTargets", "OutcomeTargets", "Predictions", "Targets", "find_targets"]

Predictions = ClassPredictions | OutcomePredictions


class Targets(ABC):
    """What a run learns of its images, and everything that depends on it."""

    classes: tuple[str, ...] = ()  # names, where there are any
    unit: float = 1.0  # of the loss, by which it is divided for the optimiser

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Outputs of the model."""

    @property
    @abstractmethod
    def recipe_family(self) -> Any:
        """What recipe.yaml says of the family."""

    @abstractmethod
    def describe(self, samples: list[Sample], balanced: bool) -> str:
        """One line on the labels of the training images."""

    @abstractmethod
    def split(self, source: ImageSource, val_fraction: float, seed: int) -> dict[str, list[Sample]]:
        """The samples of train, val and test."""

    @abstractmethod
    def read(self, labels: Sequence[str]) -> Tensor:
        """Labels as numbers, (N,)."""

    @abstractmethod
    def fitted(self, labels: Tensor, source: str) -> Targets:
        """The targets of these training labels, refused where nothing can be learned from them."""

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch."""

    def count_right(self, outputs: Tensor, labels: Tensor) -> Tensor | int:
        """How many of a batch are right; 0 where right and wrong mean nothing."""
        return 0

    def train_figures(self, run: RunState) -> dict[str, float]:
        """What a row of the log says of the epoch beside its loss."""
        return {}

    def folded(self, model: Any) -> Any:
        """The model as it is published."""
        return model

    @abstractmethod
    def predict(self, model: nn.Module, data: ImageData, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
        """What a published model says of images whose labels are known, in the weights' own precision."""

    def finish(self, model: Any, val: Any, measured: Any) -> tuple[Any, dict[str, Any]]:
        """The predictions of the images measured, and what metrics.json says beside their score."""
        return measured, {}

    @abstractmethod
    def findings(
        self,
        predictions: Any,
        history: list[dict[str, Any]],
        data: ImageData,
        names: list[str],
        train: Tensor,
        split: str,
    ) -> Findings:
        """What the report shows of predictions of `data`, whose images have these names; `train` are training labels."""


@dataclass(frozen=True)
class ClassTargets(Targets):
    """Classes, by their names in the model's order."""

    classes: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    @property
    def recipe_family(self) -> Any:
        return "categorical"

    def describe(self, samples: list[Sample], balanced: bool) -> str:
        return describe_balance(samples, balanced)

    def split(self, source: ImageSource, val_fraction: float, seed: int) -> dict[str, list[Sample]]:
        return split_samples(source, val_fraction, seed)

    def read(self, labels: Sequence[str]) -> Tensor:
        numbers = {name: i for i, name in enumerate(self.classes)}
        if unknown := sorted(set(labels) - numbers.keys()):
            raise DataError(
                f"label {unknown[0]!r} is none of the model's classes: give the data that it was trained with"
            )
        return torch.tensor([numbers[label] for label in labels], dtype=torch.int64)

    def fitted(self, labels: Tensor, source: str) -> Targets:
        missing = sorted(set(range(len(self.classes))) - set(labels.tolist()))
        if missing:
            which = ", ".join(self.classes[i] for i in missing[:12])
            raise DataError(
                f"{source}: no image is left to train with of {which}{' …' if len(missing) > 12 else ''}: mend the broken "
                "ones, add some, or take the class away"
            )
        return self

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(outputs, labels)

    def count_right(self, outputs: Tensor, labels: Tensor) -> Tensor | int:
        return (outputs.argmax(dim=1) == labels).sum()

    def train_figures(self, run: RunState) -> dict[str, float]:
        return {"train_acc": 100.0 * (run.correct / run.seen).item()}

    def predict(self, model: nn.Module, data: ImageData, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
        return predict_classes(model, data.images, data.labels, mean, std)

    def findings(
        self,
        predictions: Any,
        history: list[dict[str, Any]],
        data: ImageData,
        names: list[str],
        train: Tensor,
        split: str,
    ) -> Findings:
        counts = train.bincount(minlength=len(self.classes)).tolist()
        return class_findings(predictions, history, data.images, names, self.classes, counts, split)


@dataclass(frozen=True)
class OutcomeTargets(Targets):
    """Outcomes of a family. ``names`` are those of two classes that stand for 0 and 1; the rest is from `fitted`."""

    family: Family
    names: tuple[str, ...] = ()
    offset: float = 0.0
    scale: float = 1.0
    unit: float = 1.0

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def recipe_family(self) -> Any:
        return self.family.to_dict()

    def describe(self, samples: list[Sample], balanced: bool) -> str:
        return describe_outcomes(self.family.name, self.read([sample.label for sample in samples]))

    def split(self, source: ImageSource, val_fraction: float, seed: int) -> dict[str, list[Sample]]:
        return split_outcomes(source, val_fraction, seed)

    def check(self, source: ImageSource) -> None:
        """Look at every label.

        Raises:
            DataError: labels that are no outcomes of the family, each with its image.
        """
        wrong = [sample for sample in source.samples if not self._is_outcome(sample.label)]
        if wrong:
            named = "; ".join(f"{sample.name} has {sample.label!r}" for sample in wrong[:12])
            more = f" and {len(wrong) - 12:,} more" if len(wrong) > 12 else ""
            classes = ", or two classes" if isinstance(self.family, Bernoulli) else ""
            raise DataError(
                f"{source.name}: {len(wrong):,} of {len(source.samples):,} labels are no outcomes of family "
                f"{self.family.name}, which takes {self.family.outcomes}{classes}: {named}{more}: correct them, or give "
                "another --family"
            )

    def _is_outcome(self, label: str) -> bool:
        try:
            self.family.check(self.read([label]))
        except ValueError:  # it is no number, or none that the family can have
            return False
        return True

    def read(self, labels: Sequence[str]) -> Tensor:
        values = [float(self.names.index(label)) if self.names else float(label) for label in labels]
        return torch.tensor(values, dtype=torch.float32)

    def fitted(self, labels: Tensor, source: str) -> Targets:
        y = labels.double()
        if not len(y):
            raise DataError(f"{source}: no image is left to train with: mend the broken ones, or add some")
        if bool((y == y[0]).all()):
            raise DataError(f"{source}: every training image has the outcome {y[0]:g}: there is nothing to learn")
        offset = self.family.link.forward(y.mean())
        if not bool(offset.isfinite()):
            raise DataError(
                f"{source}: the outcomes have the mean {y.mean():g}, which link {self.family.link} of family "
                f"{self.family.name} cannot give: use another link"
            )
        spread, slope = float(y.std()), float(self.family.link.derivative(offset))
        scale = spread / slope
        if self.family.link.name != "identity":  # another link bends, and s reaches where it is no longer straight
            scale = min(scale, 1.0)
        unit = spread * scale * float(self.family.information(offset)) / slope
        return replace(self, offset=float(offset), scale=scale, unit=unit)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Negative log-likelihood."""
        return self.family.nll(labels, self.offset + self.scale * outputs)

    def folded(self, model: Any) -> Any:
        """A copy whose output is η."""
        published = copy.deepcopy(model)
        head = published.get_classifier()
        with torch.no_grad():
            head.weight.mul_(self.scale)
            head.bias.mul_(self.scale).add_(self.offset)
        return published

    def unfold(self, model: Any) -> None:
        """Let a model whose output is η train on: its output is z from here on."""
        head = model.get_classifier()
        with torch.no_grad():
            head.weight.div_(self.scale)
            head.bias.sub_(self.offset).div_(self.scale)

    def predict(self, model: nn.Module, data: ImageData, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
        device = next(model.parameters()).device
        return OutcomePredictions(self.family, *predictors(model, data.to(device), mean, std))

    def finish(self, model: Any, val: Any, measured: Any) -> tuple[Any, dict[str, Any]]:
        """The dispersion by the validation images, which the model has not learned, and intervals calibrated by them."""
        family = self.family
        if not family.discrete:  # of counts the dispersion shapes the likelihood, and stays as it was given
            family = family.with_dispersion(family.estimate_dispersion(val.y, val.eta))
        model.family = family
        held = None if measured is val else (val.y, val.eta)
        rows = calibrate(family, measured.y, measured.eta, held)
        intervals = [{"level": r.level, "plain": r.plain, "asked": r.asked, "calibrated": r.calibrated} for r in rows]
        more: dict[str, Any] = {"intervals": intervals}
        if self.names:
            more["outcome_names"] = list(self.names)
        return replace(measured, family=family, coverage=tuple(rows)), more

    def findings(
        self,
        predictions: Any,
        history: list[dict[str, Any]],
        data: ImageData,
        names: list[str],
        train: Tensor,
        split: str,
    ) -> Findings:
        return outcome_findings(predictions, history, data.images, names, split, self.names)


def find_targets(family: Family, source: ImageSource) -> Targets:
    """The targets of a data set.

    Args:
        family: of the outcomes.
        source: from `find_images`, told whether it has classes.

    Raises:
        DataError: labels that are no outcomes of the family.
    """
    if isinstance(family, Categorical):
        return ClassTargets(source.classes)
    targets = OutcomeTargets(family)
    if isinstance(family, Bernoulli):
        labels = {sample.label for sample in source.samples}
        if len(labels) == 2 and not all(targets._is_outcome(label) for label in labels):
            return OutcomeTargets(family, tuple(sorted(labels, key=natural_key)))
    targets.check(source)
    return targets
