"""Is one row of a table better than another: against scipy and statsmodels, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportions_ztest

from gode_zoo.ordering import difference


def test_over_seeds_it_is_welchs_test():
    first, second = [13.4, 13.6, 13.1], [15.2, 15.9, 15.5, 15.3]
    found = difference(first, second, 10_000)
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert found.over_seeds and found.p == pytest.approx(welch.pvalue)
    assert found.points / found.standard_error == pytest.approx(welch.statistic)


def test_one_seed_compares_shares_of_the_test_images():
    found = difference([0.31], [0.40], 10_000)
    z, p = proportions_ztest([31, 40], [10_000, 10_000])
    assert not found.over_seeds and found.points == pytest.approx(-0.09)
    assert found.p == pytest.approx(p, rel=0.01)  # statsmodels pools the two shares
    assert found.points / found.standard_error == pytest.approx(z, rel=0.01)
    assert found.p > 0.05  # Table 1's MNIST rows, of one run each, tell nothing


def test_equal_models_are_told_apart_as_rarely_as_promised():
    random = np.random.default_rng(0)
    errors = 100 * random.binomial(10_000, 0.13, (2000, 2)) / 10_000
    shares = [difference([a], [b], 10_000).p < 0.05 for a, b in errors]
    assert 0.035 < np.mean(shares) < 0.065
    assert difference([13.0], [13.0], 10_000).p == pytest.approx(1.0)


def test_what_cannot_be_compared():
    assert math.isnan(difference([0.0], [0.0], 100).p) and math.isnan(difference([5.0, 5.0], [6.0, 6.0], 100).p)
    for first, second, images in (([], [1.0], 10), ([1.0], [101.0], 10), ([1.0], [1.0], 0)):
        with pytest.raises(ValueError, match="need percentages"):
            difference(first, second, images)
