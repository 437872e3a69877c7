"""What report.html shows of a run that learned outcomes: predicted against observed, residuals, intervals, extremes.

Of many images the charts show some, evenly chosen from the lowest prediction to the highest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..outcome_predictions import OutcomePredictions
from .parts import Findings, table, text, thumbnails
from .svg_charts import Point, scatter_chart

__all__ = ["outcome_findings"]

_DRAWN = 300  # points of a chart, at most
_THUMBNAILS = 12
_LEVEL = 0.95  # of the intervals drawn


def outcome_findings(
    predictions: OutcomePredictions,
    history: Sequence[dict[str, Any]],
    images: Tensor,
    names: Sequence[str],
    split: str,
    outcome_names: Sequence[str] = (),
) -> Findings:
    """The findings of predictions of images (N, C, H, W) uint8.

    Args:
        predictions: of the images measured, with the coverage of their intervals.
        history: one dict an epoch.
        images: these.
        names: of these.
        split: what was measured, "test" or "validation".
        outcome_names: of two classes that stand for 0 and 1.
    """
    score, family = predictions.score, predictions.family
    constant = score.null_deviance / score.total
    metric = f"{score.metric:.4g}" + (" %" if score.metric_name in ("accuracy", "mape") else "")
    tiles = [
        (f"{score.error:.4g}", f"{split} deviance an outcome, {score.total:,} of them (constant mean: {constant:.4g})"),
        (metric, score.metric_name),
        (family.name, ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                                for key, value in family.to_dict().items() if key != "name")),
    ]  # fmt: skip
    curves = {"validation": [(row["epoch"], row["val_error"]) for row in history]}
    if split == "validation":
        curves["constant mean"] = [(row["epoch"], constant) for row in history]
    meaning = ""
    if outcome_names:
        meaning = f"<p>Outcome 0 is {text(outcome_names[0])}, outcome 1 is {text(outcome_names[1])}.</p>"
    sections = [
        (f"Predicted against observed ({split})", meaning + _against(predictions, names)),
        (f"Predictive intervals ({split})", _intervals(predictions, split)),
        (f"Best and worst predictions ({split})", _examples(predictions, images, names)),
    ]
    return Findings(tiles, curves, "Deviance an outcome (validation)", sections)


def _against(predictions: OutcomePredictions, names: Sequence[str]) -> str:
    means, (low, high) = predictions.means, predictions.interval(_LEVEL)
    residuals = predictions.family.deviance_residuals(predictions.y, predictions.eta)
    order = means.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(len(order), _DRAWN)).round().long()].tolist()
    rows = [(i, float(means[i]), float(predictions.y[i])) for i in chosen]
    against = [
        Point(y, mean, f"{names[i]}: {y:g}, predicted {mean:.4g}", float(low[i]), float(high[i])) for i, mean, y in rows
    ]
    around = [Point(mean, float(residuals[i]), f"{names[i]}: {float(residuals[i]):.3g}") for i, mean, _ in rows]
    charts = [
        scatter_chart(
            against,
            x_label="observed",
            y_label=f"Predicted mean and {_percent(_LEVEL)} interval (dashed: equal)",
            line=1,
        ),
        scatter_chart(around, x_label="predicted mean", y_label="Deviance residuals (dashed: none)", line=0),
    ]
    note = f"<p>{len(chosen):,} of {len(means):,} images.</p>" if len(chosen) < len(means) else ""
    return f'<div class="charts">{"".join(charts)}</div>{note}'


def _intervals(predictions: OutcomePredictions, split: str) -> str:
    rows = [
        (_percent(row.level), _percent(row.plain), _percent(row.calibrated), _percent(row.asked))
        for row in predictions.coverage
    ]
    by = (
        "by the validation images"
        if split == "test"
        else "by these images; its coverage is that of both halves of them, each calibrated by the other"
    )
    return (
        table(("interval", "holds of the outcomes", "calibrated, holds", "by asking for"), rows)
        + f"<p>Calibrated {by}. A dash: there are too few of them. Intervals of counts hold more than they say, for they end "
        "at whole numbers.</p>"
    )


def _examples(predictions: OutcomePredictions, images: Tensor, names: Sequence[str]) -> str:
    best, worst = predictions.extremes(_THUMBNAILS)
    means, (low, high) = predictions.means, predictions.interval(_LEVEL)

    def shown(chosen: Iterable[int]) -> Iterable[tuple[Tensor, str, str, bool]]:
        for i in chosen:
            y, ends = float(predictions.y[i]), (float(low[i]), float(high[i]))
            below = f"{y:.4g}, predicted {float(means[i]):.4g}<br>{ends[0]:.4g} to {ends[1]:.4g}"
            yield images[i], names[i], below, ends[0] <= y <= ends[1]

    note = (
        f"<p>As the model sees them: the outcome, the predicted mean and the {_percent(_LEVEL)} interval (red: outside of "
        "it).</p>"
    )
    return note + thumbnails("Least deviance", shown(best)) + thumbnails("Largest deviance", shown(worst))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100.0 * share:.3g} %"
