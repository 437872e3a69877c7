"""Outcomes of four families on real data: a Neural-GODE against the generalised linear model, on held-out deviance.

    η = x·β + head(h(T)),   dh/dt = f(t, h; W(t)) from h(0) = A x,   W(t) B-splines of time

Data that installed packages carry: visits to a doctor (statsmodels' randhie: counts), affairs (statsmodels' fair: yes or
no), progress of diabetes (scikit-learn's diabetes: a positive number). The GODE starts at the GLM, its head at zero, and is
trained with the family's negative log-likelihood; a held-out fifth of the training data says when to stop, so the GLM is
among what it may choose. The GLM is fitted by statsmodels to all of the training data, that fifth too.

Each of five random splits tests on another fifth. Written to results/families.md and .csv (five minutes on two cores):

    python examples/glm_outcomes.py
"""

import copy
import csv
import warnings
from pathlib import Path

import numpy as np
import statsmodels.api as sm
import torch
from torch import nn

from gode_zoo import BSplineBasis, ODEBlock, lift
from gode_zoo.calibration import LEVELS, measure
from gode_zoo.families import get_family

SPLITS, WIDTH = 5, 32
COLUMNS = ("data", "family", "n", "GLM", "GODE", "GODE − GLM", "metric", "GLM metric", "GODE metric")


def visits():
    data = sm.datasets.randhie.load_pandas()
    return data.exog.to_numpy(float), data.endog.to_numpy(float)


def affairs():
    data = sm.datasets.fair.load_pandas()
    return data.exog.to_numpy(float), (data.endog > 0).to_numpy(float)


def progress():
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True)


TASKS = {
    "visits to a doctor": (visits, "poisson"),
    "visits to a doctor, too": (visits, "negative_binomial"),
    "an affair": (affairs, "bernoulli"),
    "progress of diabetes": (progress, "gamma"),
}


class GODERegressor(nn.Module):
    """A linear predictor and a small Neural-GODE beside it: features ``(B, p)`` to η ``(B,)``."""

    def __init__(self, num_features):
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        self.stem = nn.Linear(num_features, WIDTH)
        mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        field = lift(mlp, BSplineBasis(num_basis=4, degree=2, knots="clamped"))
        self.block = ODEBlock(field, solver="rk4", num_steps=2)
        self.head = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return (self.linear(x) + self.head(self.block(self.stem(x)))).squeeze(1)


def fit_glm(family, x, y):
    """Coefficients (intercept last) by statsmodels, and the family with its dispersion."""
    kinds = {"poisson": sm.families.Poisson(), "bernoulli": sm.families.Binomial()}
    design = np.column_stack([x.numpy(), np.ones(len(x))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family.name == "negative_binomial":
            known = sm.NegativeBinomial(y.numpy(), design).fit(disp=0, maxiter=200)
            return torch.from_numpy(known.params[:-1]), family.with_dispersion(known.params[-1])
        theirs = kinds.get(family.name) or sm.families.Gamma(sm.families.links.Log())
        known = sm.GLM(y.numpy(), design, theirs).fit()
    beta = torch.from_numpy(known.params)
    return beta, family.with_dispersion(known.scale) if family.has_dispersion else family


def fit_gode(family, beta, x, y, x_held, y_held, seed, epochs=60, patience=15):
    """The epoch with the least held-out loss, of training that starts at the GLM."""
    torch.manual_seed(seed)
    model = GODERegressor(x.shape[1])
    with torch.no_grad():
        model.linear.weight.copy_(beta[None, :-1])
        model.linear.bias.copy_(beta[-1:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    batch = max(32, len(x) // 40)
    best, kept, since = float(family.nll(y_held, model(x_held).detach())), copy.deepcopy(model.state_dict()), 0
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(batch):
            loss = family.nll(y[index], model(x[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        held = float(family.nll(y_held, model(x_held).detach()))
        since += 1
        if held < best:
            best, kept, since = held, copy.deepcopy(model.state_dict()), 0
        if since == patience:
            break
    model.load_state_dict(kept)
    return model.eval()


def compare(load, name, split):
    """One split: held-out deviance and metric of both, and the coverage of the GODE's intervals."""
    features, outcomes = load()
    order = np.random.default_rng(split).permutation(len(outcomes))
    test, held, train = np.split(order, [len(order) // 5, 2 * (len(order) // 5)])
    fitted = np.concatenate([train, held])
    centre, spread = features[fitted].mean(0), features[fitted].std(0)
    x = torch.from_numpy((features - centre) / spread)
    y = torch.from_numpy(outcomes)
    family = get_family(name)

    beta, family_glm = fit_glm(family, x[fitted], y[fitted])
    eta_glm = x[test] @ beta[:-1] + beta[-1]
    start, family_gode = fit_glm(family, x[train], y[train])
    x32 = x.float()
    model = fit_gode(family_gode, start.float(), x32[train], y[train], x32[held], y[held], seed=split)
    with torch.no_grad():
        eta, eta_held, eta_train = (model(x32[part]).double() for part in (test, held, train))
    if family.has_dispersion:
        family_gode = family_gode.with_dispersion(family_gode.estimate_dispersion(y[train], eta_train, "likelihood"))
    # Both deviances of counts are taken at one α, the GLM's: with an α of its own each would judge itself.
    return {
        "glm": float(family_glm.deviance(y[test], eta_glm)) / len(test),
        "gode": float(family_glm.deviance(y[test], eta)) / len(test),
        "metric_glm": family.metric(y[test], eta_glm),
        "metric_gode": family.metric(y[test], eta),
        "coverage": measure(family_gode, y[test], eta, y[held], eta_held),
    }


def mean_sd(values, digits=4):
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def main(out=Path("results"), splits=SPLITS):
    rows, intervals = [], []
    for data, (load, name) in TASKS.items():
        results = [compare(load, name, split) for split in range(splits)]
        column = {key: np.array([result[key] for result in results]) for key in results[0] if key != "coverage"}
        metrics = [f"{column[key].mean():.4g}" for key in ("metric_glm", "metric_gode")]
        deviances = [mean_sd(values) for values in (column["glm"], column["gode"], column["gode"] - column["glm"])]
        rows.append((data, name, len(load()[1]), *deviances, get_family(name).metric_name, *metrics))
        for i, level in enumerate(LEVELS):
            plain = np.mean([result["coverage"][i].plain for result in results])
            calibrated = np.mean([result["coverage"][i].calibrated for result in results])
            intervals.append((data, name, f"{100 * level:.0f}", f"{100 * plain:.1f}", f"{100 * calibrated:.1f}"))
        print(*rows[-1], *intervals[-3:], sep="\n  ")
    out.mkdir(exist_ok=True)
    header = ("data", "family", "level %", "held-out inside %", "after calibration %")
    with (out / "families.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows, (), header, *intervals])
    text = (
        f"# Outcomes of exponential families: GODE and GLM\n\nDeviance of one held-out outcome, mean ± standard deviation "
        f"over {splits} random splits (examples/glm_outcomes.py; one run each). Smaller is better.\n\n{table(COLUMNS, rows)}\n\n"
        f"Share of held-out outcomes inside the GODE's predictive intervals, as they stand and calibrated on the fifth "
        f"that stopped the training. Intervals of counts and of yes or no hold at least their level: they jump.\n\n"
        f"{table(header, intervals)}\n"
    )
    (out / "families.md").write_text(text, encoding="utf-8")


def table(header, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows])


if __name__ == "__main__":
    main()
