"""Figures of a classifier, against scikit-learn and formulas written out."""

import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score
from torch import nn

from gode_zoo.class_predictions import ClassPredictions, predict_classes

CLASSES = 5


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (300, 1, 4, 4), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (300,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    with torch.no_grad():
        probabilities = model(images.float() / 255).softmax(dim=1)
    return predict_classes(model.train(), images, labels, (0.0,), (1.0,), batch_size=77), probabilities, labels, model


def test_against_scikit_learn(case):
    got, probabilities, labels, model = case
    assert not model.training
    predicted = probabilities.argmax(dim=1)
    assert torch.equal(got.predicted, predicted)
    assert got.error == pytest.approx(100 * (1 - accuracy_score(labels, predicted)), abs=1e-4)
    assert got.loss == pytest.approx(
        log_loss(labels, probabilities.double() / probabilities.double().sum(1, keepdim=True)), rel=1e-5
    )
    counts = got.confusions()
    matrix = confusion_matrix(labels, predicted, labels=range(CLASSES))
    assert all(counts[i, j] == matrix[i, j] for i in range(CLASSES) for j in range(CLASSES))
    shares = [score.correct / score.total for score in got.per_class(CLASSES)]
    assert shares == pytest.approx(recall_score(labels, predicted, average=None))


def test_calibration_against_scikit_learn(case):
    got, _, labels, _ = case
    right = (got.predicted == labels).numpy()
    accuracy, confidence = calibration_curve(right, got.confidence.numpy(), n_bins=10)
    bins, error = got.calibration(10)
    filled = [b for b in bins if b.count]
    assert [b.accuracy for b in filled] == pytest.approx(accuracy)
    assert [b.confidence for b in filled] == pytest.approx(confidence)
    assert error == pytest.approx(sum(b.count / 300 * abs(b.accuracy - b.confidence) for b in bins))
    assert sum(b.count for b in bins) == 300


def test_a_sure_classifier_is_in_the_last_bin():
    sure = ClassPredictions(
        torch.zeros(3).long(), torch.tensor([0, 0, 1]), torch.ones(3), torch.tensor([1.0, 1.0, 0.0])
    )
    bins, error = sure.calibration(10)
    assert bins[9].count == 3 and error == pytest.approx(1 / 3)
    assert math.isfinite(sure.loss)


def test_extremes(case):
    got, probabilities, labels, _ = case
    best, worst = got.extremes(4)
    truth = probabilities[torch.arange(300), labels].numpy()
    assert np.allclose(truth[best], np.sort(truth)[::-1][:4]) and np.allclose(truth[worst], np.sort(truth)[:4])
    assert len(got.extremes(1000)[0]) == 300
