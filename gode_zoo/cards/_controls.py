"""Does the ODE block earn its keep? GODE beside the same stem and head with another block, or none.

Where a model has several seeds it is their mean that is compared, not the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from ..metrics import mean_and_spread
from ..ordering import difference
from ._entry import Entry

__all__ = ["controls"]

_CONTROLS = {
    "stem": "no block",
    "resnet1": "one residual block",
    "resnet6": "six residual blocks",
    "resnet20": "twenty residual blocks",
    "odenet": "a Neural-ODE (constant weights, time as a channel)",
}


def controls(entries: Sequence[Entry]) -> str:
    """The section, one paragraph and table for each data set and tag that has a GODE and a control; else nothing."""
    parts = []
    for gode in entries:
        prefix, _, rest = gode.metrics["model"].partition("_")
        data = rest.partition("_")[0]
        if prefix != "gode":
            continue
        found = {
            kind: entry
            for kind in _CONTROLS
            for entry in entries
            if (entry.metrics["model"], entry.metrics["tag"]) == (f"{kind}_{data}", gode.metrics["tag"])
        }
        if found:
            parts.append(_part(gode, found))
    return "\n## Does the ODE block earn its keep?\n\n" + "\n\n".join(parts) + "\n" if parts else ""


def _part(gode: Entry, found: dict[str, Entry]) -> str:
    compared = [gode, *found.values()]
    verdicts = [f"{_verdict(gode, control)} {_CONTROLS[kind]}" for kind, control in found.items()]
    lines = [
        f"**{gode.dataset}, {gode.metrics['tag']}:** the spline ODE block is {'; '.join(verdicts)}.",
        "",
        "| model | block | parameters | epochs | error % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry, block in [*((control, _CONTROLS[kind]) for kind, control in found.items()), (gode, "spline ODE")]:
        metrics = entry.metrics
        error = f"{metrics['last']['error']:.2f} ± {entry.standard_error:.2f}"
        if len(entry.errors) > 1:
            error = f"{mean_and_spread(entry.errors)} over {len(entry.errors)} seeds"
        lines.append(f"| {entry.name} | {block} | {metrics['parameters']:,} | {metrics['epochs']} | {error} |")
    if len({entry.metrics["epochs"] for entry in compared}) > 1:
        lines += ["", "The runs have not the same number of epochs, so a part of the difference may be that."]
    trained_in: dict[str, list[str]] = {}
    for entry in compared:
        trained_in.setdefault(_precision(entry), []).append(entry.name)
    if len(trained_in) > 1:
        groups = (f"in {how}: {', '.join(names)}" for how, names in trained_in.items())
        lines += ["", f"Trained {'; '.join(groups)}."]
    return "\n".join(lines)


def _precision(entry: Entry) -> str:
    return "bf16" if yaml.safe_load(entry.recipe).get("amp") == "bf16" else "float32"


def _verdict(gode: Entry, control: Entry) -> str:
    """Better or worse where so great a difference would come by chance less than once in twenty times."""
    found = difference(control.errors, gode.errors, gode.metrics["last"]["total"])
    if not found.p < 0.05:
        return f"not measurably different ({found.points:+.2f} ± {found.standard_error:.2f} points) from"
    better = "better" if found.points > 0 else "worse"
    return f"{abs(found.points):.2f} ± {found.standard_error:.2f} points {better} than"
