"""An epidemic whose transmission rate varies: SIR with Poisson counts, the truth known.

    ds/dt = −β(t) s i,   d(log i)/dt = β(t) s − γ,   counts ~ Poisson(N ρ i),   log β(t) a cubic B-spline

N people, a share ρ of whom is tested on each day of observation; γ is known. The transmission rate falls and comes back,
some days were missed, and the last ten days are a forecast. Run it (half a minute):

    python examples/time_varying_sir.py          # prints the recovery, draws results/dynamic_sir.png
"""

import math
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp

from gode_zoo import BSplineBasis
from gode_zoo.dynamic import GODEModel

PEOPLE, TESTED, RECOVERY, DAYS, LAST, START = 100_000, 0.1, 0.2, 60.0, 50.0, -7.0


def truth(t):
    """``log β(t)``, ``(n,)``."""
    return -0.9 + 0.5 * torch.cos(torch.as_tensor(t, dtype=torch.float64) / 9)


def sir(t, z, theta):
    transmission = theta[0].exp()
    return torch.stack([-transmission * z[0] * z[1].exp(), transmission * z[0] - RECOVERY])


def model(num_basis=10):
    return GODEModel(
        sir,
        family="poisson",
        readout=lambda t, z, theta: z[1] + math.log(PEOPLE * TESTED),
        bases=BSplineBasis(num_basis, 3, (0.0, DAYS), "clamped"),
        initial_state=lambda a: torch.stack([1 - a[0].exp(), a[0]]),
        step_size=1.0,
    )


def true_log_share(times):
    """``log i`` at sorted times, by a solver that has nothing in common with ours."""

    def slope(t, z):
        transmission = math.exp(truth(t))
        return [-transmission * z[0] * math.exp(z[1]), transmission * z[0] - RECOVERY]

    start = [1 - math.exp(START), START]
    return solve_ivp(slope, (0, DAYS), start, t_eval=times, rtol=1e-10, atol=1e-10).y[1]


def simulate(seed):
    """Times and counts up to day 50, some missing, and those of the ten days after."""
    rng = np.random.default_rng(seed)
    times = np.arange(1.0, DAYS + 1)
    counts = rng.poisson(PEOPLE * TESTED * np.exp(true_log_share(times))).astype(float)
    counts[rng.choice(int(LAST), 5, replace=False)] = np.nan
    seen = times <= LAST
    return (times[seen], counts[seen]), (times[~seen], counts[~seen])


def fit(data, smoothing="gcv"):
    return model().fit(*data, initial_guess=[-6.0], theta_guess=[-1.0], smoothing=smoothing)


def main(out=Path("results")):
    from gode_zoo.dynamic.plots import plot_fit

    data, later = simulate(0)
    fitted = fit(data)
    grid = torch.linspace(0, LAST, 101, dtype=torch.float64)
    band, forecast = fitted.theta(grid), fitted.predict(later[0])
    error = (band.estimate[:, 0] - truth(grid)).square().mean().sqrt()
    held = (band.low[:, 0] <= truth(grid)) & (truth(grid) <= band.high[:, 0])
    hits = (forecast.low[:, 0].numpy() <= later[1]) & (later[1] <= forecast.high[:, 0].numpy())
    inside = 100 * float(held.double().mean())
    print(f"lambda {fitted.smoothing:.3g}, effective parameters {fitted.edf:.2f}, deviance {fitted.deviance:.1f}")
    print(f"log beta(t) to day 50: root mean square error {error:.3f}, inside the 95 % band on {inside:.0f} % of days")
    print(f"start {fitted.initial[0]:.2f} +- {fitted.initial_standard_error[0]:.2f}, truth {START}")
    print(f"forecast of days 51 to 60: {hits.sum()} of {len(hits)} counts inside the 95 % limits")
    out.mkdir(exist_ok=True)
    plot_fit(
        fitted,
        truth=truth,
        later=tuple(map(torch.from_numpy, later)),
        outcome_names=["counts"],
        theta_names=["log β(t)"],
        xlabel="day",
    ).savefig(out / "dynamic_sir.png")


if __name__ == "__main__":
    main()
