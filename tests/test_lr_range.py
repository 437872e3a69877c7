"""The range test, on a loss whose stable rates are known."""

import math

import pytest
import torch
from torch import nn

from gode_zoo.finetuning.lr_range import LRRange, find_lr


def make_optimizer(model, lr):
    return torch.optim.SGD([{"params": list(model.parameters()), "lr": lr, "lr_scale": 1.0}])


PROBE = torch.ones(1, 1), torch.zeros(1)


def batches():
    while True:
        yield torch.ones(1, 1), torch.zeros(1)


def quadratic(curvature):
    return lambda model, x, y: 0.5 * curvature * model(x).square().sum()


@pytest.mark.parametrize("curvature", [10.0, 1000.0])
def test_gradient_descent_on_a_quadratic(curvature):
    """w ← w (1 − lr·λ) explodes beyond lr = 2 / λ; a third of the best rate is below, and no crawl."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    found = find_lr(model, make_optimizer, batches(), quadratic(curvature), PROBE, highest=10.0)
    assert 0.05 / curvature < found.lr < 1.0 / curvature
    assert max(lr for lr, _ in found.curve) < 10.0  # it stopped when the loss exploded


def test_nothing_is_changed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)).eval()
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    found = find_lr(model, make_optimizer, batches(), quadratic(1.0), PROBE, steps=20)
    assert torch.equal(state, torch.get_rng_state()) and not model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert len(found.curve) == 20 and found.curve[0][0] == 1e-4 and math.isclose(found.curve[-1][0], 1.0)


def test_groups_scale_the_rate():
    seen = []

    def make(model, lr):
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": lr, "lr_scale": 0.5}])
        optimizer.register_step_pre_hook(lambda opt, *_: seen.append(opt.param_groups[0]["lr"]))
        return optimizer

    curve = find_lr(nn.Linear(1, 1), make, batches(), quadratic(1.0), PROBE, steps=5).curve
    assert seen == pytest.approx([0.5 * lr for lr, _ in curve])


def test_a_loss_that_is_no_number():
    with pytest.raises(ValueError, match="NaN or infinite before the first step"):
        find_lr(nn.Linear(1, 1), make_optimizer, batches(), lambda m, x, y: m(x).sum() * math.nan, PROBE)


def test_as_csv_and_back():
    curve = LRRange([(1e-5, 2.5), (0.1 + 0.2, 1 / 3), (1.0, 7.0)])
    assert LRRange.from_csv(curve.to_csv()) == curve
    assert curve.lr == 0.1
