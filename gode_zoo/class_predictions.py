"""What a classifier said of images whose classes are known, and the figures that follow.

    p = predict_classes(model, images, labels, mean, std)
    p.error, p.loss, p.per_class(10), p.confusions(), p.calibration(), p.extremes(12)

N images; for each the predicted class, its probability (the confidence), and the probability of the true class. The
table of all probabilities is never kept, so 10,000 classes are no more than two.

Expected calibration error: Σ_b (n_b / N) |accuracy_b − confidence_b| over bins of confidence.
Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .data import normalize
from .evaluate import Score

__all__ = ["Bin", "ClassPredictions", "predict_classes"]


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in one interval: how many, how sure on average, how often right."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassPredictions:
    """Predictions of N images, on the CPU: labels and predicted (N,) int64, the probabilities (N,) float32."""

    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    true_probability: Tensor

    @property
    def score(self) -> Score:
        """How many are right."""
        return Score(int((self.predicted == self.labels).sum()), len(self.labels))

    @property
    def error(self) -> float:
        """In %."""
        return self.score.error

    @property
    def loss(self) -> float:
        """Mean cross entropy, in nats."""
        return float(-self.true_probability.double().clamp_min(1e-30).log().mean())

    def per_class(self, num_classes: int) -> list[Score]:
        """The score of the images of each class; a total of 0 where there is none."""
        total = self.labels.bincount(minlength=num_classes).tolist()
        right = self.labels[self.predicted == self.labels].bincount(minlength=num_classes).tolist()
        return [Score(r, t) for r, t in zip(right, total, strict=True)]

    def confusions(self) -> Counter[tuple[int, int]]:
        """How often each (true class, predicted class) occurs; pairs that do not occur are left out."""
        return Counter(zip(self.labels.tolist(), self.predicted.tolist(), strict=True))

    def calibration(self, bins: int = 10) -> tuple[list[Bin], float]:
        """Bins of equal width over [0, 1], and the expected calibration error."""
        which = (self.confidence.double() * bins).long().clamp(0, bins - 1)
        right = (self.predicted == self.labels).double()
        result, error = [], 0.0
        for b in range(bins):
            inside = which == b
            count = int(inside.sum())
            confidence = float(self.confidence[inside].double().mean()) if count else 0.0
            accuracy = float(right[inside].mean()) if count else 0.0
            result.append(Bin(count, confidence, accuracy))
            error += count / max(len(self.labels), 1) * abs(accuracy - confidence)
        return result, error

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """The images with the largest and with the smallest probability of their true class, most extreme first."""
        order = self.true_probability.argsort(stable=True).tolist()
        return order[::-1][:count], order[:count]


def predict_classes(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 250,
) -> ClassPredictions:
    """Classify images (N, C, H, W) uint8, on the model's device, in the weights' own precision.

    The model is left in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(normalize(batch.to(device), tuple(mean), tuple(std))).float()
            confidence, predicted = logits.softmax(dim=1).max(dim=1)
            truth = truth.to(device)[:, None]
            of_truth = (logits.gather(1, truth)[:, 0] - logits.logsumexp(dim=1)).exp()
            parts.append((predicted.cpu(), confidence.cpu(), of_truth.cpu()))
    predicted, confidence, of_truth = (torch.cat(part) for part in zip(*parts, strict=True))
    return ClassPredictions(labels.cpu(), predicted, confidence, of_truth)
