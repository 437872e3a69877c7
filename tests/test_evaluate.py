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


def test_mirror_averages_the_logits_of_both_images():
    images = torch.tensor([[10, 0], [0, 20], [30, 40]], dtype=torch.uint8).view(3, 1, 1, 2)

    class Left(nn.Module):
        """Class 0 where the left pixel is brighter than 8 of 255; in the mean of both logits where both together are."""

        def forward(self, x):
            bright = x[:, 0, 0, 0] * 255 - 8
            return torch.stack([bright, torch.zeros_like(bright)], 1)

    data = ImageData(images, torch.zeros(3, dtype=torch.int64), ("bright", "dark"), "made")
    assert count_correct(Left(), data, (0.0,), (1.0,)) == Score(2, 3)
    assert count_correct(Left(), data, (0.0,), (1.0,), mirror=True) == Score(2, 3)  # 10 - 16 < 0 < 20 - 16
    images[1, 0, 0, 1] = 12  # 12 - 16 < 0
    assert count_correct(Left(), data, (0.0,), (1.0,), mirror=True) == Score(1, 3)
    assert count_correct(Left(), data, (0.0,), (1.0,)) == Score(2, 3)


def test_mirror_needs_a_published_figure():
    with pytest.raises(ValueError, match="no figure with mirror images"):
        evaluate("gode_mnist_m4", mirror=True)


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
