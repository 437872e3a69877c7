"""Carbon dioxide at Mauna Loa, 1958 to 2001: its growth rate as a curve of time, and five years of forecast.

    dz/dt = θ(t) (z − 280),   y ~ Normal(z + two harmonics of the year, σ²),   θ(t) a cubic B-spline

280 ppm is the pre-industrial level, θ the relative growth rate of what lies above it. The data are those of statsmodels
(`statsmodels.datasets.co2`): weekly, with gaps. Every ninth week is taken, gaps and all; the last five years are held out
and compared with the forecast, and with that of an exponential growth at a constant rate (m = 1). Run it (a minute):

    python examples/co2_growth.py                # prints errors of the forecasts, draws results/dynamic_co2.png
"""

import math
from pathlib import Path

import numpy as np
import torch

from gode_zoo import BSplineBasis
from gode_zoo.dynamic import GODEModel

SPAN, CUT, BASE = (1958.0, 2002.0), 1997.0, 280.0


def load():
    """Times in years ``(n,)`` and ppm ``(n,)``, NaN in the gaps."""
    from statsmodels.datasets import co2

    frame = co2.load_pandas().data.iloc[::9]
    years = frame.index.year + (frame.index.day_of_year - 0.5) / 365.25
    return years.to_numpy(float), frame["co2"].to_numpy(float)


def growth(t, z, theta):
    return theta[:1] * (z - BASE)


def readout(t, z, theta):
    turn = 2 * math.pi * t
    season = theta[1] * turn.cos() + theta[2] * turn.sin() + theta[3] * (2 * turn).cos() + theta[4] * (2 * turn).sin()
    return z[0] + season


def fit(times, y, num_basis):
    degree = min(3, num_basis - 1)
    constant = BSplineBasis(1, 0, SPAN)
    model = GODEModel(
        growth,
        "gaussian",
        readout,
        [BSplineBasis(num_basis, degree, SPAN, "clamped"), *[constant] * 4],
        initial_state=lambda a: BASE + a,  # above the base
        step_size=1.0,
    )
    return model.fit(times, y, initial_guess=[35.0], theta_guess=[0.02, 0.0, 0.0, 0.0, 0.0], penalty_order=1)


def main(out=Path("results")):
    from gode_zoo.dynamic.plots import plot_fit

    times, y = load()
    seen, later = times < CUT, (times >= CUT) & ~np.isnan(y)
    count, gaps = int((~np.isnan(y[seen])).sum()), int(np.isnan(y).sum())
    print(f"{count} measurements, {gaps} gaps; {later.sum()} held out, from {CUT:.0f} on")
    for name, num_basis in (("theta(t), m = 20", 20), ("theta constant, m = 1", 1)):
        fitted = fit(times[seen], y[seen], num_basis)
        forecast = fitted.predict(times[later])
        error = forecast.mean[:, 0].numpy() - y[later]
        inside = (forecast.low[:, 0].numpy() <= y[later]) & (y[later] <= forecast.high[:, 0].numpy())
        print(
            f"{name}: sigma {math.sqrt(fitted.family.dispersion):.2f} ppm, effective parameters {fitted.edf:.1f}; forecast "
            f"error (rms) {np.sqrt((error**2).mean()):.2f} ppm, {100 * inside.mean():.0f} % inside the 95 % limits"
        )
        if num_basis > 1:
            out.mkdir(exist_ok=True)
            plot_fit(
                fitted,
                later=(torch.from_numpy(times[later]), torch.from_numpy(y[later])),
                outcome_names=["CO₂, ppm"],
                theta_names=["growth rate a year", "", "", "", ""],
                xlabel="year",
            ).savefig(out / "dynamic_co2.png")


if __name__ == "__main__":
    main()
