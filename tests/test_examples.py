"""The examples that have no known truth (tests/test_dynamic.py has those): they find their data, and do not lose to the GLM."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import co2_growth
import glm_outcomes


def test_a_gode_of_few_data_does_not_lose_to_the_glm():
    load, name = glm_outcomes.TASKS["progress of diabetes"]
    result = glm_outcomes.compare(load, name, split=0)
    assert result["gode"] < 1.1 * result["glm"]
    assert [row.level for row in result["coverage"]] == [0.5, 0.8, 0.95]
    assert result["coverage"][2].plain > 0.85


def test_no_epoch_is_the_glm_itself():
    features, outcomes = glm_outcomes.progress()
    x, y = glm_outcomes.torch.from_numpy(features), glm_outcomes.torch.from_numpy(outcomes)
    beta, family = glm_outcomes.fit_glm(glm_outcomes.get_family("gamma"), x, y)
    (model,) = glm_outcomes.train(family, beta.float(), x.float(), y, seed=0, epochs=0)
    eta = model(x.float()).detach().double()
    assert float(family.deviance(y, eta)) == pytest.approx(
        float(family.deviance(y, x @ beta[:-1] + beta[-1])), rel=1e-4
    )


def test_carbon_dioxide_has_gaps_and_a_growth_rate():
    times, y = co2_growth.load()
    assert np.isnan(y).sum() > 3 and (np.diff(times) > 0).all()
    early = times < 1975
    fit = co2_growth.fit(times[early], y[early], 1)
    assert 0.01 < float(fit.coeffs[0][0]) < 0.03  # a year, of what lies above 280 ppm
    assert 2 < float(fit.theta([1970.0]).estimate[0, 1:3].norm()) < 4  # ppm: half the swing of the seasons
