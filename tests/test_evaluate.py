"""Scores, and what counts as agreeing with a reported error."""

import pytest
import torch
from torch import nn

from gode_zoo.data import ImageData
from gode_zoo.evaluate import Evaluation, Score, count_correct, evaluate
from gode_zoo.models._pretrained import WeightsError
from gode_zoo.predict import predict


def test_count_correct_counts_every_image_once():
    images = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1)
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 0])  # of which the parity of the pixel is right for the first five and 6

    class Parity(nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot((x.flatten() * 255).round().long() % 2, 2).float()

    score = count_correct(Parity(), ImageData(images, labels, ("even", "odd"), "made"), (0.0,), (1.0,), batch_size=3)
    assert score == Score(6, 7)
    assert score.error == pytest.approx(100 / 7, abs=1e-4)


@pytest.mark.parametrize(
    ("correct", "total", "agrees"), [(9970, 10000, True), (9972, 10000, True), (9973, 10000, False), (997, 1000, False)]
)
def test_agreement_is_two_hundredths_of_a_point(correct, total, agrees):
    assert Evaluation("m", "d", Score(9970, 10000), Score(correct, total)).agrees is agrees


def test_missing_weights_and_bad_numbers(tmp_path):
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        evaluate(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size = 0"):
        evaluate("gode_mnist_m4", batch_size=0)
    with pytest.raises(ValueError, match="topk = 0"):
        predict("gode_mnist_m4", [], topk=0)
