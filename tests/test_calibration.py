"""Coverage of predictive intervals: as promised where the model is right, and mended where it is not."""

import pytest
import torch

from gode_zoo.calibration import LEVELS, calibrate, calibrated_level, coverage, measure
from gode_zoo.families import get_family


def sample(family, count, seed):
    torch.manual_seed(seed)
    eta = torch.rand(count, dtype=torch.float64) + 1
    return family.sample(eta), eta


WRONG = {
    "gaussian": {"name": "gaussian", "dispersion": 0.1},
    "gamma": {"name": "gamma", "dispersion": 0.1},
    "negative_binomial": "poisson",
}


@pytest.mark.parametrize("truth", WRONG)
def test_calibration_mends_a_wrong_dispersion(truth):
    """Too narrow intervals come to the level."""
    family, wrong = get_family({"name": truth, "dispersion": 0.4}), get_family(WRONG[truth])
    (y, eta), (y_held, eta_held) = sample(family, 4000, 0), sample(family, 4000, 1)
    for row, right in zip(measure(wrong, y, eta, y_held, eta_held), measure(family, y, eta), strict=True):
        assert row.plain < right.plain - 0.05
        for covered in (right.plain, row.calibrated):
            assert covered > row.level - 0.03 and (family.discrete or covered < row.level + 0.03)


def test_the_calibrated_interval_is_the_one_that_was_measured():
    family = get_family("poisson")
    (y, eta), (y_held, eta_held) = sample(family, 500, 0), sample(family, 99, 1)
    for row in measure(family, y, eta, y_held, eta_held):
        low, high = family.interval(eta, row.asked)
        assert float(((low <= y) & (y <= high)).double().mean()) == row.calibrated


def test_the_level_is_an_order_statistic_of_the_scores():
    scores = torch.linspace(0.01, 0.99, 99)[torch.randperm(99)]
    assert [calibrated_level(scores, level) for level in LEVELS] == pytest.approx([0.5, 0.8, 0.95], abs=1e-6)
    assert calibrated_level(torch.ones(99), 0.5) < 1  # an interval, not the whole line
    with pytest.raises(ValueError, match=r"18 held-out outcomes cannot calibrate level=0\.95: it takes at least 19"):
        calibrated_level(scores[:18], 0.95)
    assert calibrated_level(scores[:19], 0.95) < 1
    with pytest.raises(ValueError, match="both, or neither"):
        measure(get_family("poisson"), scores, scores, scores)


def test_what_to_ask_for_comes_from_other_outcomes_or_from_all_of_the_same():
    family = get_family({"name": "gaussian", "dispersion": 0.1})
    (y, eta), held = sample(get_family("gaussian"), 300, 0), sample(get_family("gaussian"), 200, 1)
    for row, known in zip(calibrate(family, y, eta, held), measure(family, y, eta, *held), strict=True):
        assert row == known
    alone = calibrate(family, y, eta)
    a, b = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).chunk(2)
    for row in alone:
        assert row.asked == calibrated_level(family.interval_level(y, eta), row.level)
        levels = [calibrated_level(family.interval_level(y[part], eta[part]), row.level) for part in (a, b)]
        of_each = [coverage(family, y[a], eta[a], levels[1]), coverage(family, y[b], eta[b], levels[0])]
        assert row.calibrated == pytest.approx((of_each[0] * len(a) + of_each[1] * len(b)) / len(y))
        assert row.calibrated == pytest.approx(row.level, abs=0.05) and row.plain < row.level - 0.1


def test_levels_that_so_few_cannot_calibrate():
    family = get_family("gaussian")
    y, eta = sample(family, 20, 0)
    rows = {row.level: row for row in calibrate(family, y, eta)}
    assert rows[0.95].asked is not None and rows[0.95].calibrated is None  # all are enough, half of them are not
    assert rows[0.5].calibrated is not None
    assert [row.calibrated for row in calibrate(family, y[:1], eta[:1])] == [None] * 3
    assert all(row.asked is None for row in calibrate(family, y[:1], eta[:1], (y[:0], eta[:0])))
