"""Do the bands hold what they promise? Many simulated data sets of the two examples whose truth is known.

For each data set: does the pointwise 95 % band of the curve hold the truth, averaged over times; does the interval of
the start's unknowns; do predictive limits hold outcomes that were not seen. The bands' promise is an average over times:
the interval of the epidemic's start falls short of it, for smoothing straightens the curve just where it begins.
Written to results/dynamic_coverage.md and .csv. Ten minutes for 40 data sets each:

    python examples/bands_coverage.py 40
"""

import csv
import sys
from pathlib import Path

import logistic_growth
import numpy as np
import time_varying_sir
import torch

COLUMNS = ("example", "what", "level %", "coverage %", "standard error", "data sets")


def held(band, truth):
    """Share of times at which a band's first column holds the truth."""
    return float(((band.low[:, 0] <= truth) & (truth <= band.high[:, 0])).double().mean())


def start_held(fit, truth):
    distance = (fit.initial - torch.as_tensor(truth, dtype=torch.float64)).abs()
    return float((distance <= 1.96 * fit.initial_standard_error).double().mean())


def sir(seed, smoothing="gcv"):
    data, (later, counts) = time_varying_sir.simulate(seed)
    fit = time_varying_sir.fit(data, smoothing)
    grid = torch.linspace(0, time_varying_sir.LAST, 101, dtype=torch.float64)
    forecast = fit.predict(later)
    inside = (forecast.low[:, 0].numpy() <= counts) & (counts <= forecast.high[:, 0].numpy())
    return {
        "log beta(t)": held(fit.theta(grid), time_varying_sir.truth(grid)),
        "log i(0)": start_held(fit, [time_varying_sir.START]),
        "forecast counts": float(inside.mean()),
    }


def logistic(seed, smoothing="gcv"):
    fit = logistic_growth.fit(logistic_growth.simulate(seed), smoothing)
    grid = torch.linspace(0, 12, 101, dtype=torch.float64)  # later both cultures are full and tell nothing of r(t)
    new_times, new = logistic_growth.simulate(10_000 + seed)
    limits = fit.predict(new_times)
    seen = ~np.isnan(new)
    inside = ((limits.low.numpy() <= new) & (new <= limits.high.numpy()))[seen]
    return {
        "log r(t)": held(fit.theta(grid), logistic_growth.truth(grid)),
        "z(0)": start_held(fit, logistic_growth.START),
        "new measurements": float(inside.mean()),
    }


def coverage(name, one, count):
    """Rows of the table: means over data sets, and their standard errors."""
    results = [one(seed) for seed in range(1, count + 1)]
    rows = []
    for what in results[0]:
        shares = 100 * np.array([result[what] for result in results])
        error = shares.std(ddof=1) / np.sqrt(count)
        rows.append((name, what, 95, round(float(shares.mean()), 1), round(float(error), 1), count))
    return rows


def main(count=40, out=Path("results")):
    rows = [*coverage("SIR, Poisson", sir, count), *coverage("logistic, Gaussian", logistic, count)]
    out.mkdir(exist_ok=True)
    with (out / "dynamic_coverage.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    table = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    text = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in table)
    (out / "dynamic_coverage.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
