"""What a card says of a model whose outcomes are no classes, where that of a classifier has accuracy and labels."""

from __future__ import annotations

from typing import Any

from ..families import Family, get_family
from ._entry import Entry

__all__ = [
    "best_text",
    "evaluation",
    "facts",
    "family_of",
    "figures",
    "finetuning_code",
    "limits",
    "output_code",
    "score_text",
]

_NAMES = {
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "mape": "mean absolute error in %",
    "accuracy": "accuracy in %",
}


def family_of(entry: Entry) -> Family:
    """The family of the outcomes."""
    return get_family(entry.metrics["family"])


def evaluation(entry: Entry) -> dict[str, Any]:
    """What the Hub's index says of the figure."""
    last = entry.metrics["last"]
    return {
        "task_type": "image-regression",
        "metric_type": last["metric_name"],
        "metric_name": _NAMES[last["metric_name"]],
        "metric_value": round(last["metric"], 6),
    }


def facts(entry: Entry) -> tuple[str, str]:
    """The row that says what comes out."""
    family, names = family_of(entry), entry.metrics.get("outcome_names")
    dispersion = f", dispersion {family.dispersion:.4g}" if family.has_dispersion else ""
    meaning = f"; 0 is {names[0]}, 1 is {names[1]}" if names else ""
    return "Outcomes", f"{family.name}, link {family.link.name}{dispersion}{meaning}"


def figures(entry: Entry) -> list[tuple[str, str]]:
    """Rows of the table of figures, in place of the error and its standard error."""
    last = entry.metrics["last"]
    rows = [
        ("Deviance an outcome, of these weights", f"**{score_text(last)}**, epoch {last['epoch']}"),
        ("Deviance an outcome, of the constant mean", f"{last['null_deviance'] / last['total']:.4g}"),
        (f"{_NAMES[last['metric_name']].capitalize()}, of these weights", f"{last['metric']:.4g}"),
    ]
    for row in entry.metrics.get("intervals", ()):
        calibrated = ""
        if row["calibrated"] is not None:
            calibrated = f"; calibrated (ask for {100 * row['asked']:.1f} %) {100 * row['calibrated']:.1f} %"
        rows.append(
            (
                f"Outcomes in the {100 * row['level']:g} % predictive intervals",
                f"{100 * row['plain']:.1f} %{calibrated}",
            )
        )
    return rows


def score_text(score: dict[str, Any]) -> str:
    """A score in words."""
    return f"{score['error']:.4g}, of {score['total']:,}"


def best_text(best: dict[str, Any]) -> str:
    """The best epoch's figure."""
    return score_text(best) if "total" in best else f"{best['val_error']:.4g} of the held-out images"


def output_code(entry: Entry) -> str:
    """The lines that turn the model's output into something to use."""
    asked = next(
        (
            row["asked"]
            for row in entry.metrics.get("intervals", ())
            if row["level"] == 0.95 and row["asked"] is not None
        ),
        None,
    )
    level = f"{asked!r})  # calibrated: holds 95 %" if asked is not None else "0.95)"
    return f"""\
eta = model(images).squeeze(1)  # (2,)
mean = model.family.mean(eta)
low, high = model.family.interval(eta, {level}"""


def finetuning_code(entry: Entry, name: str) -> str:
    """How it starts learning other outcomes."""
    return f"""\
Fine-tune it on outcomes of your own, which a CSV with the columns `path` and `label` gives:
`gode-zoo finetune {name} outcomes.csv --family {family_of(entry).name}`."""


def limits(entry: Entry) -> str:
    """What it is not to be trusted with."""
    return (
        "It knows images like those it was trained with: any other gets a prediction all the same. No robustness or bias "
        "study\nwas made: decide nothing about people by it."
    )
