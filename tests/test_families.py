"""Families of outcomes against scipy.stats, statsmodels' GLM on the same data, and themselves at the extremes."""

import math
import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
import statsmodels.api as sm
import torch
from statsmodels.genmod.families import links as sm_links

from gode_zoo.families import FAMILIES, Categorical, Gamma, NegativeBinomial, get_family

SCALAR = sorted(set(FAMILIES) - {"categorical"})
PAIRS = [(name, link) for name in SCALAR for link in FAMILIES[name].links]
SM_LINKS = {
    "identity": sm_links.Identity,
    "log": sm_links.Log,
    "inverse": sm_links.InversePower,
    "sqrt": sm_links.Sqrt,
    "logit": sm_links.Logit,
    "probit": sm_links.Probit,
    "cloglog": sm_links.CLogLog,
}
ALPHA = 0.7


def statsmodels_family(name, link):
    made = sm_links.NegativeBinomial(alpha=ALPHA) if link == "nbinom" else SM_LINKS[link]()
    if name == "negative_binomial":
        return sm.families.NegativeBinomial(made, alpha=ALPHA)
    kinds = {"gaussian": "Gaussian", "bernoulli": "Binomial", "poisson": "Poisson", "gamma": "Gamma"}
    return getattr(sm.families, kinds[name])(made)


def make(name, link=None, dispersion=ALPHA):
    options = {"dispersion": dispersion} if FAMILIES[name].has_dispersion else {}
    return get_family({"name": name, "link": link, **options})


def predictors(family, count=400, seed=0):
    """η inside the link's domain, with means of ordinary size."""
    eta = np.random.default_rng(seed).uniform(-1.5, 1.5, count)
    if family.link.domain == "η > 0":
        eta = 0.4 + np.abs(eta)
    if family.link.domain == "η < 0":
        eta = -0.2 - np.abs(eta)
    return torch.from_numpy(eta)


def outcomes(family, eta, seed=0):
    torch.manual_seed(seed)
    return family.sample(eta)


@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_agrees_with_statsmodels_at_given_predictors(name, link):
    """Mean, deviance, log-likelihood and both residuals, to 1e-6 and in truth to rounding."""
    family, theirs = make(name, link), statsmodels_family(name, link)
    eta = predictors(family)
    y = outcomes(family, eta)
    mean = theirs.link.inverse(eta.numpy())
    scale = 1.0 if name == "negative_binomial" else family.dispersion
    close = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(family.mean(eta), mean, **close)
    np.testing.assert_allclose(family.link.forward(family.mean(eta)), eta, **close)
    np.testing.assert_allclose(family.link.derivative(eta), theirs.link.inverse_deriv(eta.numpy()), **close)
    np.testing.assert_allclose(family.deviance(y, eta), theirs.deviance(y.numpy(), mean), rtol=1e-9)
    np.testing.assert_allclose(family.log_prob(y, eta), theirs.loglike_obs(y.numpy(), mean, scale=scale), **close)
    np.testing.assert_allclose(family.deviance_residuals(y, eta), theirs.resid_dev(y.numpy(), mean), atol=1e-7)
    pearson = (y.numpy() - mean) / np.sqrt(theirs.variance(mean))
    np.testing.assert_allclose(family.pearson_residuals(y, eta), pearson, **close)
    weights = theirs.weights(mean) / scale  # 1 / (g'(μ)² V(μ))
    np.testing.assert_allclose(family.information(eta), weights, rtol=1e-8)


@pytest.mark.parametrize(("name", "link"), [pair for pair in PAIRS if pair[1] != "nbinom"])
def test_a_linear_predictor_fitted_with_our_likelihood_is_the_glm(name, link):
    """Fisher scoring with our pieces on the same data: coefficients, dispersion and deviance of statsmodels to 1e-6."""
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(300), rng.uniform(-0.5, 0.5, (300, 2))])
    base = {"identity": 2.0, "inverse": 1.2, "sqrt": 1.5}.get(link, 0.2)
    design = torch.from_numpy(x)
    family = make(name, link)
    y = outcomes(family, design @ torch.tensor([base, 0.4, -0.3], dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on links whose domain is not the whole line
        theirs = sm.GLM(y.numpy(), x, statsmodels_family(name, link)).fit(tol=1e-12, tol_criterion="params")
    beta = torch.tensor([base, 0.0, 0.0], dtype=torch.float64)
    for _ in range(60):
        eta = (design @ beta).requires_grad_()
        (score,) = torch.autograd.grad(family.log_prob(y, eta).sum(), eta)
        weight = family.information(eta.detach())
        beta = beta + torch.linalg.solve(design.T @ (weight[:, None] * design), design.T @ score)
    eta = design @ beta
    np.testing.assert_allclose(beta, theirs.params, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(family.deviance(y, eta), theirs.deviance, rtol=1e-9)
    np.testing.assert_allclose(family.pearson_residuals(y, eta).square().sum(), theirs.pearson_chi2, rtol=1e-6)
    if name in ("gaussian", "gamma"):
        np.testing.assert_allclose(family.estimate_dispersion(y, eta, "moment", 3), theirs.scale, rtol=1e-6)


@pytest.mark.parametrize(("name", "link"), PAIRS)
def test_density_quantiles_and_samples_are_scipys(name, link):
    family = make(name, link)
    eta = predictors(family, 5)
    mean = family.mean(eta).numpy()
    a = family.dispersion
    dist = {
        "gaussian": lambda: scipy.stats.norm(mean, math.sqrt(a)),
        "bernoulli": lambda: scipy.stats.bernoulli(mean),
        "poisson": lambda: scipy.stats.poisson(mean),
        "negative_binomial": lambda: scipy.stats.nbinom(1 / a, 1 / (1 + a * mean)),
        "gamma": lambda: scipy.stats.gamma(1 / a, scale=a * mean),
    }[name]()
    y = outcomes(family, eta)
    density = dist.logpdf if name in ("gaussian", "gamma") else dist.logpmf
    np.testing.assert_allclose(family.log_prob(y, eta), density(y.numpy()), rtol=1e-9, atol=1e-10)
    for level in (0.5, 0.95):
        low, high = family.interval(eta, level)
        np.testing.assert_allclose(low, dist.ppf((1 - level) / 2), rtol=1e-8)
        np.testing.assert_allclose(high, dist.ppf((1 + level) / 2), rtol=1e-8)
    torch.manual_seed(0)
    draws = family.sample(eta, (40_000,))
    standard_error = dist.std() / 200
    assert (np.abs(draws.mean(0).numpy() - mean) < 5 * standard_error).all()
    variance = family.variance(family.mean(eta)) * (1 if name == "negative_binomial" else a)
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.1)


@pytest.mark.parametrize("name", SCALAR)
def test_the_interval_of_a_level_holds_an_outcome_just_when_it_should(name):
    family = make(name)
    eta = predictors(family, 2000)
    y = outcomes(family, eta)
    level = family.interval_level(y, eta)
    for asked in (0.3, 0.5, 0.8, 0.95):
        low, high = family.interval(eta, asked)
        assert torch.equal((low <= y) & (y <= high), level <= asked)
        covered = float((level <= asked).double().mean())
        assert covered > asked - 0.04 and (family.discrete or covered < asked + 0.04)


def test_categorical_is_scipys_and_takes_numbers_or_one_hot():
    family = get_family("categorical")
    eta = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 4
    rows = torch.nn.functional.one_hot(y, 4)
    probabilities = scipy.special.softmax(eta.numpy(), axis=1)
    expected = [scipy.stats.multinomial(1, p).logpmf(r) for p, r in zip(probabilities, rows.numpy(), strict=True)]
    np.testing.assert_allclose(family.log_prob(y, eta), expected, rtol=1e-10)
    for method in ("log_prob", "unit_deviance", "pearson_residuals", "deviance_residuals", "interval_level"):
        assert torch.equal(getattr(family, method)(y, eta), getattr(family, method)(rows, eta)), method
    torch.testing.assert_close(family.nll(y, eta), torch.nn.functional.cross_entropy(eta, y))
    torch.testing.assert_close(family.deviance(y, eta), 2 * 50 * family.nll(y, eta))
    hessian = torch.func.hessian(lambda e: family.nll(y[0], e))(eta[0])
    torch.testing.assert_close(family.information(eta[0]), hessian)
    assert family.metric(y, eta) == 100 * float((eta.argmax(1) == y).double().mean())
    mask = family.interval(eta, 0.8)
    mass = (family.mean(eta) * mask).sum(1)
    least = torch.where(mask, family.mean(eta), 2.0).amin(1)
    assert (mass >= 0.8).all() and (mass - least < 0.8).all()  # enough, and not without its last class
    assert torch.equal(mask.gather(1, y[:, None])[:, 0], family.interval_level(y, eta) <= 0.8)


@pytest.mark.parametrize("method", ["moment", "likelihood"])
@pytest.mark.parametrize("name", ["gaussian", "gamma", "negative_binomial"])
def test_dispersion_is_recovered(name, method):
    family = make(name)
    eta = predictors(family, 20_000)
    y = outcomes(family, eta)
    assert make(name, dispersion=3.0).estimate_dispersion(y, eta, method) == pytest.approx(ALPHA, rel=0.05)


@pytest.mark.parametrize("name", ["gaussian", "gamma", "negative_binomial"])
def test_the_likelihood_estimate_maximises_the_likelihood(name):
    family = make(name)
    eta = predictors(family, 300)
    y = outcomes(family, eta)
    best = family.estimate_dispersion(y, eta, "likelihood")
    losses = [float(family.with_dispersion(best * factor).nll(y, eta)) for factor in (0.999, 1.0, 1.001)]
    assert losses[1] == min(losses)


def test_the_negative_binomials_dispersion_is_statsmodels():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(500), rng.uniform(-1, 1, 500)])
    y = rng.negative_binomial(2, 2 / (2 + np.exp(x @ [1.0, 0.5])))
    theirs = sm.NegativeBinomial(y, x).fit(disp=0, method="bfgs", gtol=1e-9, maxiter=500)
    eta = torch.from_numpy(x @ theirs.params[:2])
    estimate = NegativeBinomial().estimate_dispersion(torch.from_numpy(y), eta, "likelihood")
    assert estimate == pytest.approx(theirs.params[2], rel=1e-5)
    # The moment estimate sets Pearson's statistic to n − p.
    alpha = NegativeBinomial().estimate_dispersion(torch.from_numpy(y), eta, "moment", 2)
    assert statsmodels_chi2(y, np.exp(eta.numpy()), alpha) == pytest.approx(498, rel=1e-6)
    # Counts with no more variance than Poisson's have none to estimate.
    assert NegativeBinomial().estimate_dispersion(torch.full((50,), 4), torch.full((50,), math.log(4.0))) == 1e-8


def statsmodels_chi2(y, mean, alpha):
    return float(((y - mean) ** 2 / sm.families.NegativeBinomial(alpha=alpha).variance(mean)).sum())


@pytest.mark.parametrize(
    ("name", "link", "y", "eta", "expected"),
    [
        ("bernoulli", "logit", 1.0, -800.0, -800.0),
        ("bernoulli", "logit", 0.0, 800.0, -800.0),
        ("bernoulli", "probit", 1.0, -30.0, scipy.stats.norm.logcdf(-30.0)),
        ("bernoulli", "cloglog", 1.0, -300.0, -300.0),
        ("bernoulli", "cloglog", 1.0, 300.0, 0.0),
        ("poisson", "log", 3.0, -800.0, 3 * -800.0 - math.log(6)),
        ("poisson", "log", 0.0, -800.0, 0.0),
        (
            "negative_binomial",
            "log",
            2.0,
            -800.0,
            2 * (-800.0 + math.log(ALPHA)) + math.log((1 / ALPHA + 1) / ALPHA / 2),
        ),
        ("gamma", "log", 1.0, 800.0, None),
        ("gamma", "log", 1e-300, -600.0, None),
    ],
)
def test_extreme_predictors(name, link, y, eta, expected):
    """The logarithm is right, and its gradient finite, where the mean itself rounds to 0 or 1."""
    family = make(name, link)
    predictor = torch.tensor(eta, dtype=torch.float64, requires_grad=True)
    outcome = torch.tensor(y, dtype=torch.float64)
    value = family.log_prob(outcome, predictor)
    (slope,) = torch.autograd.grad(value, predictor)
    if expected is None:
        shape = 1 / ALPHA
        log_ratio = math.log(y) - eta
        expected = shape * (math.log(shape) + log_ratio - math.exp(log_ratio)) - math.lgamma(shape) - math.log(y)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert slope.isfinite()
    near = (family.log_prob(outcome, predictor.detach() * (1 + 1e-7)) - value.detach()) / (eta * 1e-7)
    assert slope.item() == pytest.approx(near.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_raised_and_gradients_flow(name, dtype):
    family = make(name)
    eta = torch.linspace(-3, 3, 7).to(dtype).requires_grad_()
    y = outcomes(family, eta)
    loss = family.nll(y, eta)
    loss.backward()
    assert loss.dtype == torch.float32 and eta.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "y", "message"),
    [
        ("poisson", [1.0, -2.0], r"y holds -2\.0 \(1 of 2 outcomes .* counts: whole numbers of at least 0"),
        ("poisson", [1.5, 2.0], r"y holds 1\.5"),
        ("negative_binomial", [math.inf, 2.0], "y holds inf"),
        ("bernoulli", [0.0, 1.2], r"y holds 1\.2.*probabilities"),
        ("gamma", [0.0, 1.0], r"y holds 0\.0.*more than 0"),
        ("gaussian", [math.nan, 1.0], "y holds nan"),
    ],
)
def test_impossible_outcomes_are_refused(name, y, message):
    with pytest.raises(ValueError, match=message):
        make(name).nll(torch.tensor(y), torch.zeros(2))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.tensor([0, 3]), r"y holds 3 .* class numbers 0 to 2"),
        (torch.tensor([0.5, 1.0]), r"y holds 0\.5 .* class numbers"),
        (torch.tensor([[0.5, 0.6, 0.0], [1.0, 0.0, 0.0]]), "rows that sum to 1"),
        (torch.tensor([[0.5, 0.5, math.nan], [1.0, 0.0, 0.0]]), "y holds nan .* probabilities"),
        (torch.zeros(4), r"y has shape \(4,\), eta \(2, 3\)"),
    ],
)
def test_impossible_classes_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        Categorical().nll(y, torch.zeros(2, 3))


def test_shapes_are_never_broadcast():
    family = get_family("poisson")
    assert family.log_prob(torch.ones(4), torch.zeros(4, 1)).shape == (4,)
    for y, eta in (((4, 1), (4,)), ((4,), (4, 2)), ((1,), (4,))):
        with pytest.raises(ValueError, match="needs the same shape"):
            family.nll(torch.ones(y), torch.zeros(eta))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("poison", "did you mean 'poisson'"),
        (
            {"name": "poisson", "link": "logit"},
            "link='logit' does not fit family poisson: must be one of log, identity, sqrt",
        ),
        ({"name": "poisson", "dispersion": 2.0}, "1 by definition.*negative_binomial"),
        ({"name": "gamma", "dispersion": 0.0}, "must be positive and finite"),
        ({"name": "gamma", "shape": 1.0}, "unknown shape; allowed are name, link, dispersion"),
        (3, "must be one of gaussian"),
    ],
)
def test_what_is_no_family_is_refused(family, message):
    with pytest.raises(ValueError, match=message):
        get_family(family)


@pytest.mark.parametrize(
    ("name", "link"), [("gamma", "inverse"), ("poisson", "identity"), ("negative_binomial", "nbinom")]
)
def test_predictors_without_a_mean_are_refused(name, link):
    bad = 0.5 if link == "nbinom" else -0.5
    with pytest.raises(ValueError, match=rf"eta holds {bad} \(1 of 2\).*needs η [<>] 0.*link=\"log\""):
        make(name, link).nll(torch.ones(2), torch.tensor([bad, -bad]))


@pytest.mark.parametrize(("name", "link"), [*PAIRS, ("categorical", "softmax")])
def test_a_family_comes_back_from_plain_values(name, link):
    family = make(name, link)
    again = get_family(family.to_dict())
    assert again.to_dict() == family.to_dict() and type(again) is type(family) and get_family(family) is family
    assert family.canonical_link in family.links


def test_estimates_and_intervals_refuse_what_cannot_be():
    family, y, eta = Gamma(), torch.ones(3), torch.zeros(3)
    for call, message in (
        (lambda: family.estimate_dispersion(y, eta, "guess"), 'must be "moment" or "likelihood"'),
        (lambda: family.estimate_dispersion(y, eta, "moment", 3), "leave a degree of freedom"),
        (lambda: get_family("poisson").estimate_dispersion(y, eta), "nothing to estimate"),
        (lambda: family.interval(eta, 1.0), "level=1.0"),
        (lambda: family.nll(y, torch.zeros(3, dtype=torch.int64)), "must be floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_loss_compiles_in_one_graph():
    for name in (*SCALAR, "categorical"):
        family = get_family(name)
        y, eta = torch.tensor([1, 0, 1]), torch.zeros(3, *((2,) if name == "categorical" else ()))
        y = y + 1 if name == "gamma" else y
        torch._dynamo.reset()
        compiled = torch.compile(family.nll, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(y, eta), family.nll(y, eta))
