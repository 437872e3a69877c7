"""Growth whose rate varies: two cultures, a logistic equation with Gaussian noise, the truth known.

    dz_j/dt = r(t) z_j (1 − z_j / K),   y_j ~ Normal(z_j, σ²),   log r(t) a cubic B-spline;  K, z_1(0), z_2(0), σ unknown

Both cultures share the rate and the capacity K: the large one tells K early, the small one tells r(t) for longer. Forty
random times, some twice; a tenth of the measurements is missing. Run it (half a minute):

    python examples/logistic_growth.py           # prints the recovery, draws results/dynamic_logistic.png
"""

import math
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp

from gode_zoo import BSplineBasis
from gode_zoo.dynamic import GODEModel

CAPACITY, NOISE, START, END, COUNT = 10.0, 0.2, (2.0, 0.1), 15.0, 40
SPAN = (0.0, END)


def truth(t):
    """``log r(t)``, ``(n,)``."""
    return math.log(0.35) + 0.6 * torch.sin(torch.as_tensor(t, dtype=torch.float64) / 3)


def logistic(t, z, theta):
    log_rate, log_capacity = theta.unbind()
    return log_rate.exp() * z * (1 - z / log_capacity.exp())


def model(num_basis=10):
    return GODEModel(
        logistic,
        family="gaussian",
        readout=lambda t, z, theta: z,
        bases=[BSplineBasis(num_basis, 3, SPAN, "clamped"), BSplineBasis(1, 0, SPAN, "clamped")],
        step_size=0.5,
    )


def simulate(seed):
    """Times ``(n,)``, unsorted and some of them repeated, and outcomes ``(n, 2)``, NaN where missing."""
    rng = np.random.default_rng(seed)
    times = rng.uniform(0, END, COUNT)
    times[:4] = times[4:8]
    solved = solve_ivp(
        lambda t, z: math.exp(truth(t)) * z * (1 - z / CAPACITY), SPAN, START, dense_output=True, rtol=1e-10, atol=1e-10
    )
    y = solved.sol(times).T + NOISE * rng.standard_normal((COUNT, 2))
    y[rng.random((COUNT, 2)) < 0.1] = np.nan
    return times, y


def fit(data, smoothing="gcv"):
    return model().fit(*data, initial_guess=[1.0, 1.0], theta_guess=[-1.0, math.log(8.0)], smoothing=smoothing)


def main(out=Path("results")):
    from gode_zoo.dynamic.plots import plot_fit

    fitted = fit(simulate(0))
    grid = torch.linspace(*SPAN, 101, dtype=torch.float64)
    band = fitted.theta(grid)
    # Where both cultures are full the rate is not seen: the curve counts while the small one is below 95 % of K.
    growing = fitted.state(grid).estimate[:, 1] < 0.95 * CAPACITY
    error = (band.estimate[growing, 0] - truth(grid[growing])).square().mean().sqrt()
    held = ((band.low[:, 0] <= truth(grid)) & (truth(grid) <= band.high[:, 0]))[growing]
    inside = 100 * float(held.double().mean())
    print(f"lambda {fitted.smoothing:.3g}, effective parameters {fitted.edf:.2f}")
    print(
        f"log r(t) while growing: root mean square error {error:.3f}, inside the 95 % band at {inside:.0f} % of times"
    )
    capacity, its_error = band.estimate[0, 1].exp(), band.estimate[0, 1].exp() * band.standard_error[0, 1]
    print(f"K {capacity:.3f} +- {its_error:.3f}, truth {CAPACITY}")
    for value, its_error, true in zip(fitted.initial, fitted.initial_standard_error, START, strict=True):
        print(f"z(0) {value:.3f} +- {its_error:.3f}, truth {true}")
    print(f"sigma {math.sqrt(fitted.family.dispersion):.3f}, truth {NOISE}")
    out.mkdir(exist_ok=True)
    plot_fit(
        fitted,
        truth=lambda t: torch.stack([truth(t), torch.full_like(t, math.log(CAPACITY))], dim=1),
        outcome_names=["y, large", "y, small"],
        theta_names=["log r(t)", "log K"],
    ).savefig(out / "dynamic_logistic.png")


if __name__ == "__main__":
    main()
