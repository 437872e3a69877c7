"""Pictures of a dynamic GODE's fit: outcomes with their forecast, and the curves θ_j(t) with bands.

    plot_fit(model.fit(times, y, …), truth=lambda t: theta(t)).savefig("fit.png")

Needs matplotlib, the extra `plots`; figures are made without pyplot, as in `plots`.

Shapes: n times, q curves, J outcomes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..plots import new_figure
from .fit import DynamicFit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_fit"]

_POINTS = 200  # of each curve


def plot_fit(
    fit: DynamicFit,
    level: float = 0.95,
    until: float | None = None,
    truth: Callable[[Tensor], Tensor] | None = None,
    later: tuple[Tensor, Tensor] | None = None,
    outcome_names: Sequence[str] | None = None,
    theta_names: Sequence[str] | None = None,
    xlabel: str = "t",
    *,
    figure: Any = None,
) -> Figure:
    """Draw outcomes, means and predictive limits above, and each curve that varies, with its pointwise band, below.

    What lies after the last observation, a forecast, has a grey ground.

    Args:
        fit: from `GODEModel.fit`.
        level: of bands and predictive limits.
        until: last time drawn; the end of the bases' span where None.
        truth: from times ``(n,)`` to the true curves ``(n, q)``, drawn dashed.
        later: times and outcomes that the fit has not seen, drawn hollow.
        outcome_names: and ``theta_names``: labels of the axes, J and q of them.
        xlabel: of the time axis.
        figure: matplotlib figure or subfigure to draw into; a new one where None.

    Raises:
        ValueError: a number of names that is not that of what they name.
        ImportError: matplotlib is missing.
    """
    outcomes = fit.y.shape[1]
    curves = [j for j, basis in enumerate(fit.model.bases) if basis.num_basis > 1]
    names = _names("outcome_names", outcome_names, outcomes, "y")
    thetas = _names("theta_names", theta_names, len(fit.model.bases), "θ")
    t0, end = fit.model.t_span
    times = torch.linspace(t0, end if until is None else until, _POINTS, dtype=torch.float64)
    prediction, band = fit.predict(times, level), fit.theta(times, level)
    rows = outcomes + len(curves)
    figure = new_figure(7.0, 2.4 * rows) if figure is None else figure
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for j, ax in enumerate(axes[:outcomes]):
        ax.fill_between(
            times, prediction.low[:, j], prediction.high[:, j], alpha=0.25, label=f"{100 * level:g} % predictive"
        )
        ax.plot(times, prediction.mean[:, j], label="mean")
        ax.plot(fit.times, fit.y[:, j], ".", color="black", markersize=4, label="observed")
        if later is not None:
            ax.plot(
                later[0],
                later[1].reshape(len(later[0]), -1)[:, j],
                "o",
                color="black",
                fillstyle="none",
                markersize=4,
                label="later",
            )
        ax.set_ylabel(names[j])
    true = None if truth is None else truth(times).reshape(_POINTS, -1)
    for j, ax in zip(curves, axes[outcomes:], strict=True):
        ax.fill_between(times, band.low[:, j], band.high[:, j], alpha=0.25, color="C1", label=f"{100 * level:g} % band")
        ax.plot(times, band.estimate[:, j], color="C1", label="estimate")
        if true is not None:
            ax.plot(times, true[:, j], "--", color="black", label="truth")
        ax.set_ylabel(thetas[j])
    last = float(fit.times[~fit.y.isnan().all(dim=1)].max())
    for ax in axes:
        if last < float(times[-1]):
            ax.axvspan(last, float(times[-1]), color="grey", alpha=0.12, linewidth=0)
        ax.legend(fontsize="small")
        ax.set_xlim(t0, float(times[-1]))
    axes[-1].set_xlabel(xlabel)
    return figure


def _names(argument: str, names: Sequence[str] | None, count: int, letter: str) -> list[str]:
    if names is None:
        return [letter if count == 1 else f"{letter}{j + 1}" for j in range(count)]
    if len(names) != count:
        raise ValueError(f"{argument} has {len(names)} names: must be {count}")
    return list(names)
