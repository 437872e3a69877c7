"""Dynamic GODE against closed forms, statsmodels and known truths, and the data it must refuse or put in order."""

import functools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy.interpolate import BSpline

from gode_zoo import BSplineBasis
from gode_zoo.dynamic import GODEModel
from gode_zoo.dynamic.plots import plot_fit
from gode_zoo.families import get_family

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import bands_coverage
import logistic_growth
import time_varying_sir

SPAN = (0.0, 4.0)
SLOPE = BSplineBasis(1, 0, SPAN)
CURVE = BSplineBasis(8, 3, SPAN, "clamped")


def line(family, bases=SLOPE, **options):
    """``dz/dt = θ(t)``, η = z: linear in every unknown."""
    return GODEModel(lambda t, z, theta: theta, family, lambda t, z, theta: z[0], bases, **options)


def data(name="gaussian", count=60, seed=0):
    rng = np.random.default_rng(seed)
    times = rng.uniform(0, 4, count)
    torch.manual_seed(seed)
    family = get_family({"name": name, "dispersion": 0.3} if get_family(name).has_dispersion else name)
    return times, family.sample(torch.from_numpy(0.5 + 0.4 * np.sin(times)))


@pytest.mark.parametrize("name", ["gaussian", "poisson", "gamma", "bernoulli", "negative_binomial"])
def test_a_constant_slope_is_the_glm(name):
    """Estimates and standard errors (observed information) of statsmodels' GLM with intercept and slope, to 1e-6."""
    times, y = data(name)
    family = {"name": name, "dispersion": 0.3} if name == "negative_binomial" else name
    how = "known" if name == "negative_binomial" else None
    fit = line(family).fit(times, y, [0.1], [0.0], dispersion=how)
    theirs = {
        "gaussian": sm.families.Gaussian(),
        "poisson": sm.families.Poisson(),
        "gamma": sm.families.Gamma(sm.families.links.Log()),
        "bernoulli": sm.families.Binomial(),
        "negative_binomial": sm.families.NegativeBinomial(alpha=0.3),
    }[name]
    glm = sm.GLM(y.numpy(), np.column_stack([times, np.ones_like(times)]), theirs)
    known = glm.fit(tol=1e-12, tol_criterion="params")
    np.testing.assert_allclose(fit.beta, known.params, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.deviance, known.deviance, rtol=1e-8)
    covariance = np.linalg.inv(-glm.hessian(known.params, scale=known.scale, observed=True))
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-6)
    assert fit.edf == pytest.approx(2)
    if name in ("gaussian", "gamma"):
        assert fit.family.dispersion == pytest.approx(known.scale, rel=1e-6)


def test_a_penalised_curve_is_penalised_least_squares():
    """The integral of the basis by exact quadrature, and the closed form of coefficients, edf and covariance."""
    times, y = data()
    smoothing = 0.7
    fit = line("gaussian", CURVE, step_size=0.1).fit(times, y, [0.0], [0.0], smoothing=smoothing)
    integrals = [BSpline(CURVE.knot_values, row, 3).antiderivative() for row in np.eye(8)]
    design = np.column_stack([*(integral(times) - integral(0.0) for integral in integrals), np.ones_like(times)])
    penalty = np.zeros((9, 9))
    penalty[:8, :8] = CURVE.gram(2)
    normal = design.T @ design + smoothing * penalty
    beta = np.linalg.solve(normal, design.T @ y.numpy())
    np.testing.assert_allclose(fit.beta, beta, atol=1e-6)
    edf = np.trace(np.linalg.solve(normal, design.T @ design))
    assert fit.edf == pytest.approx(edf, rel=1e-6)
    variance = ((y.numpy() - design @ beta) ** 2).sum() / (len(y) - edf)
    np.testing.assert_allclose(fit.covariance, variance * np.linalg.inv(normal), rtol=1e-5, atol=1e-9)
    band = fit.theta([1.0, 2.5], level=0.9)
    rows = CURVE(torch.tensor([1.0, 2.5], dtype=torch.float64))
    error = (rows @ fit.covariance[:8, :8] @ rows.T).diagonal().sqrt()
    torch.testing.assert_close(band.standard_error[:, 0], error)
    torch.testing.assert_close(band.high - band.estimate, 1.6448536269514722 * band.standard_error)
    state = fit.state(times).estimate[:, 0]
    np.testing.assert_allclose(state, design @ beta, atol=1e-6)


def test_cross_validation_chooses_the_best_of_a_fine_grid():
    times, y = data(count=60)
    model = line("gaussian", BSplineBasis(12, 3, SPAN, "clamped"), step_size=0.2)
    chosen = model.fit(times, y, [0.0], [0.0])

    def criterion(fit):
        return 60 * fit.deviance / (60 - 1.4 * fit.edf) ** 2

    grid = [model.fit(times, y, [0.0], [0.0], smoothing=chosen.smoothing * 10.0**k) for k in (-1, -0.3, 0.3, 1)]
    assert criterion(chosen) <= min(map(criterion, grid)) * (1 + 1e-4)


def test_a_jump_of_a_piecewise_constant_curve_is_exact():
    """Steps end at knots and look at the curve from the left: z is piecewise linear to rounding."""
    model = line("gaussian", BSplineBasis(4, 0, SPAN, "clamped"), step_size=0.3)
    times = torch.tensor([0.0, 0.7, 1.0, 2.6, 4.0], dtype=torch.float64)
    beta = torch.tensor([1.0, -2.0, 3.0, 0.5, 10.0], dtype=torch.float64)
    eta = model._eta(beta, model._plan(times))[:, 0]
    torch.testing.assert_close(
        eta, torch.tensor([10.0, 10.7, 11.0, 10.8, 12.5], dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_order_repeats_and_gaps():
    """Order does not matter; NaN counts for nothing; an outcome twice is two outcomes."""
    times, y = data("poisson", 30)
    fit = line("poisson", CURVE).fit(times, y, [0.0], [0.0], smoothing=1.0)
    order = np.random.default_rng(1).permutation(30)
    shuffled = line("poisson", CURVE).fit(times[order], y[order], [0.0], [0.0], smoothing=1.0)
    torch.testing.assert_close(shuffled.beta, fit.beta, atol=1e-7, rtol=0)
    gaps = line("poisson", CURVE).fit([*times, 1.5, 3.3], [*y, math.nan, math.nan], [0.0], [0.0], smoothing=1.0)
    torch.testing.assert_close(gaps.beta, fit.beta, atol=1e-7, rtol=0)
    twice = line("poisson", CURVE).fit(np.tile(times, 2), y.repeat(2), [0.0], [0.0], smoothing=2.0)
    torch.testing.assert_close(twice.beta, fit.beta, atol=1e-6, rtol=0)
    torch.testing.assert_close(2 * twice.covariance, fit.covariance, rtol=1e-4, atol=1e-9)


def test_several_outcomes_a_time_with_gaps():
    """Two lines with one slope: the same as both stacked, whichever of them is missing when."""
    times, y = data(count=40)
    both = torch.stack([y, y + 1], dim=1)
    both[::3, 0] = math.nan
    both[1::5, 1] = math.nan
    model = GODEModel(lambda t, z, theta: theta.expand(2), "gaussian", lambda t, z, theta: z, SLOPE)
    fit = model.fit(times, both, [0.0, 0.0], [0.0])
    seen = ~both.isnan()
    design = torch.stack(
        [torch.from_numpy(times)[:, None].expand(-1, 2)[seen], *torch.eye(2)[:, seen.nonzero()[:, 1]]], dim=1
    )
    ols = sm.OLS(both[seen].numpy(), design.numpy()).fit()
    np.testing.assert_allclose(fit.beta, ols.params, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, ols.cov_params(), rtol=1e-6)
    assert fit.predict([1.0]).mean.shape == (1, 2)


def test_a_forecast_holds_the_slope_or_goes_on_with_its_trend():
    """After the last observation a first-order penalty keeps θ, a second-order one its slope, and bands widen."""
    times, y = data(count=80)
    times = times / 2  # to t = 2; the span ends at 4
    basis = BSplineBasis(12, 3, SPAN, "clamped")
    later = torch.linspace(3.0, 4.0, 5, dtype=torch.float64)
    for order, derivative in ((1, 1), (2, 2)):
        fit = line("gaussian", basis).fit(times, y, [0.0], [0.0], smoothing=0.05, penalty_order=order)
        bend = basis.derivative(later, derivative) @ fit.coeffs[0]
        within = basis.derivative(torch.linspace(0, 2, 50, dtype=torch.float64), derivative) @ fit.coeffs[0]
        assert bend.abs().max() < 0.05 * within.abs().max()
        error = fit.theta([1.0, 3.0, 3.9]).standard_error[:, 0]
        assert error[0] < error[1] < error[2]
        assert (
            fit.predict([3.9]).high - fit.predict([3.9]).low > fit.predict([1.0]).high - fit.predict([1.0]).low
        ).all()


def test_predictions_leave_the_random_state_alone_and_repeat():
    fit = line("poisson").fit(*data("poisson"), [0.0], [0.0])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, other = (
        fit.predict([1.0, 2.0]),
        fit.predict([1.0, 2.0]),
        fit.predict([1.0, 2.0], seed=1, num_draws=100),
    )
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and torch.equal(other.mean, first.mean)
    torch.testing.assert_close(first.mean, fit.mean([1.0, 2.0]).estimate)
    known = get_family("poisson").interval(fit.mean([1.0, 2.0]).estimate.log(), 0.95)
    assert (first.low <= known[0] + 1).all() and (first.high >= known[1] - 1).all()


def test_observed_information_is_the_curvature_of_the_likelihood():
    """Of a model that is not linear: the covariance's inverse against second differences of the loss."""
    times = np.random.default_rng(0).uniform(0, 4, 50)
    y = np.random.default_rng(1).poisson(20 / (1 + 9 * np.exp(-times)))
    model = GODEModel(
        lambda t, z, theta: theta.exp() * z * (1 - z / 20),
        "poisson",
        lambda t, z, theta: z[0].log(),
        SLOPE,
        step_size=0.1,
    )
    fit = model.fit(times, y, [1.0], [-0.5])
    plan = fit.model._plan(torch.unique(fit.times))
    _, place = torch.unique(fit.times, return_inverse=True)

    def loss(beta):
        return -float(fit.family.log_prob(fit.y, fit.model._eta(beta, plan)[place]).sum())

    h = 1e-4
    steps = h * torch.eye(2, dtype=torch.float64)
    curvature = torch.tensor(
        [
            [sum(s * r * loss(fit.beta + s * a + r * b) for s in (1, -1) for r in (1, -1)) / (4 * h * h) for b in steps]
            for a in steps
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(torch.linalg.inv(fit.covariance), curvature, rtol=1e-4, atol=1e-3)
    assert abs(loss(fit.beta + steps[0]) - loss(fit.beta - steps[0])) / (2 * h) < 1e-3  # it is the maximum


def test_the_negative_binomials_dispersion_is_estimated_with_the_curve():
    times, y = data("negative_binomial", 400)
    fit = line("negative_binomial").fit(times, y, [0.0], [0.0], dispersion="likelihood")
    theirs = sm.NegativeBinomial(y.numpy(), np.column_stack([times, np.ones_like(times)])).fit(
        disp=0, method="bfgs", gtol=1e-8
    )
    np.testing.assert_allclose([*fit.beta, fit.family.dispersion], theirs.params, rtol=5e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Known truths: the examples


def test_a_time_varying_epidemic_is_recovered(tmp_path):
    (times, counts), later = time_varying_sir.simulate(3)
    fit = time_varying_sir.fit((times, counts))
    grid = torch.linspace(2, 48, 47, dtype=torch.float64)
    band, truth = fit.theta(grid), time_varying_sir.truth(grid)
    assert (band.estimate[:, 0] - truth).square().mean().sqrt() < 0.06  # log β ranges over 1.0
    assert bands_coverage.held(band, truth) > 0.7
    assert abs(float(fit.initial[0]) - time_varying_sir.START) < 4 * float(fit.initial_standard_error[0])
    forecast = fit.predict(later[0], level=0.95)
    inside = (forecast.low[:, 0].numpy() <= later[1]) & (later[1] <= forecast.high[:, 0].numpy())
    assert inside.mean() >= 0.8
    figure = plot_fit(fit, truth=time_varying_sir.truth, later=tuple(map(torch.from_numpy, later)))
    assert len(figure.axes) == 2 and len(figure.axes[1].lines) == 2
    figure.savefig(tmp_path / "fit.png")
    with pytest.raises(ValueError, match="outcome_names has 2 names: must be 1"):
        plot_fit(fit, outcome_names=["a", "b"])


def test_logistic_growth_is_recovered():
    fit = logistic_growth.fit(logistic_growth.simulate(3))
    grid = torch.linspace(1, 12, 45, dtype=torch.float64)
    band = fit.theta(grid)
    assert (band.estimate[:, 0] - logistic_growth.truth(grid)).square().mean().sqrt() < 0.15  # log r ranges over 1.2
    capacity = float(band.estimate[0, 1].exp())
    assert abs(capacity - logistic_growth.CAPACITY) < 0.25
    assert math.sqrt(fit.family.dispersion) == pytest.approx(logistic_growth.NOISE, rel=0.25)
    for value, error, true in zip(fit.initial, fit.initial_standard_error, logistic_growth.START, strict=True):
        assert abs(float(value) - true) < 4 * float(error)


@pytest.mark.slow
def test_bands_hold_the_truth_as_often_as_they_say():
    """Eight data sets of each example, λ as chosen for one: a covariance that is wrong by a factor shows.

    The start alone is not asked: its interval has no such promise where smoothing bends the curve at its beginning.
    """
    for one, smoothing in ((bands_coverage.sir, 4e4), (bands_coverage.logistic, 10.0)):
        rows = bands_coverage.coverage("", functools.partial(one, smoothing=smoothing), 8)
        curve, _, outcomes = (share for _, _, _, share, _, _ in rows)
        assert curve > 80 and outcomes > 75


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(
    ("times", "y", "message"),
    [
        ([0.0, 1.0], [1.0, 2.0, 3.0], r"times has shape \(2,\), y \(3,\)"),
        ([], [], "n at least 1"),
        ([0.0, math.nan], [1.0, 2.0], "times holds nan"),
        ([0.0, 5.0], [1.0, 2.0], r"times holds 5\.0 \(1 of 2\), outside the bases' t_span"),
        ([-0.1, 1.0], [1.0, 2.0], r"times holds -0\.1"),
        ([0.0, 1.0], [math.nan, math.nan], "nothing but NaN"),
        ([0.0, 1.0], [1.0, -2.0], r"y holds -2\.0 .*counts"),
        (
            [0.0, 1.0],
            [1.0, math.nan],
            r"1 outcomes for 2 unknowns \(num_basis \[1\] and 1 of the start\).*num_basis smaller",
        ),
        ([0.0, 1.0, 2.0], [[1.0, 2.0]] * 3, r"readout gives shape \(\), y has 2 outcomes"),
    ],
)
def test_data_that_cannot_be(times, y, message):
    with pytest.raises(ValueError, match=message):
        line("poisson").fit(times, y, [0.0], [0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": -1.0}, r'smoothing=-1\.0: must be "gcv"'),
        ({"smoothing": "cv"}, "smoothing='cv'"),
        ({"smoothing": 1}, "no basis has a derivative of order 2"),
        ({"penalty_order": 3}, "penalty_order=3: must be 1 or 2"),
        ({"dispersion": "moment"}, "family poisson takes known"),
        ({"theta_guess": [0.0, 1.0]}, "theta_guess=.*1 of them, one for each curve"),
        ({"initial_guess": [math.inf]}, "initial_guess=.*finite"),
        ({"initial_guess": [1e4]}, "the solution is not finite"),
        ({"initial_guess": [0.0, 0.0]}, r"vector_field gives shape \(1,\) for a state of shape \(2,\)"),
    ],
)
def test_settings_that_cannot_be(options, message):
    arguments = {"initial_guess": [0.0], "theta_guess": [0.0]} | options
    with pytest.raises(ValueError, match=message):
        line("poisson").fit(*data("poisson", 10), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "categorical"}, "one η for each outcome"),
        ({"bases": []}, "bases is empty"),
        ({"bases": [SLOPE, BSplineBasis(1, 0, (0.0, 1.0))]}, "different spans"),
        ({"solver": "dopri5"}, "chooses its own steps"),
        ({"step_size": 0.0}, "step_size=0.0"),
    ],
)
def test_models_that_cannot_be(change, message):
    arguments = {"family": "poisson", "bases": SLOPE} | change
    with pytest.raises(ValueError, match=message):
        line(**arguments)


def test_outcomes_that_do_not_determine_the_unknowns():
    """Two curves that only matter as their sum."""
    model = GODEModel(lambda t, z, theta: theta.sum()[None], "gaussian", lambda t, z, theta: z[0], [SLOPE, SLOPE])
    with pytest.raises(RuntimeError, match="do not determine the 3 unknowns"):
        model.fit(*data(), [0.0], [0.0, 0.0])


def test_what_a_fit_is_asked_for_must_lie_in_the_span():
    fit = line("poisson").fit(*data("poisson"), [0.0], [0.0])
    for call in (fit.theta, fit.state, fit.mean, fit.predict):
        with pytest.raises(ValueError, match=r"times holds 4\.5"):
            call([4.5])
        with pytest.raises(ValueError, match=r"level=1\.5"):
            call([1.0], level=1.5)
    with pytest.raises(ValueError, match="num_draws=10"):
        fit.predict([1.0], num_draws=10)
