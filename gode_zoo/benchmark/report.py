"""The report of a benchmark: benchmark_<device>.csv, .md and .png. The Markdown holds the targets with what was measured."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import provenance
from ..run_folder import atomic_write
from .figures import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["hardware", "plot_report", "targets", "write_report"]


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on and with."""
    system = {"system": platform.platform(), "python": platform.python_version()}
    commit = (provenance.source_revision() or {}).get("commit", "unknown")
    return provenance.hardware(torch.device(device)) | system | {"torch": torch.__version__, "gode_zoo commit": commit}


def write_report(rows: Sequence[Row], folder: str | Path, machine: dict[str, Any], device: str = "cpu") -> list[Path]:
    """Write the three files, and return their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    base = Path(folder) / f"benchmark_{torch.device(device).type}"
    figure = plot_report(rows, f"{machine['device']}, {machine['threads']} threads")  # fails before anything is written
    base.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Row)]
    writer.writerow(names)
    writer.writerows([_cell(getattr(row, name)) for name in names] for row in rows)
    paths = [base.with_suffix(suffix) for suffix in (".csv", ".md", ".png")]
    atomic_write(paths[0], lambda file: file.write(text.getvalue().encode()))
    atomic_write(paths[1], lambda file: file.write(_markdown(rows, machine, device).encode()))
    atomic_write(paths[2], lambda file: figure.savefig(file, format="png"))
    return paths


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def targets(rows: Sequence[Row], device: str) -> list[tuple[str, str, bool | None]]:
    """The targets of the project: what is asked, what was measured, and whether it is met (None: not measured)."""

    def seconds(figure: str, peer: str, at: float) -> float | None:
        return next((r.seconds for r in rows if (r.figure, r.peer, r.at) == (figure, peer, at)), None)

    def ratio(figure: str, peer: str, to: str, at: float) -> float | None:
        """The median ratio within the turns where `to` is the figure's first peer or `peer` is; else of medians."""
        found = {r.peer: r for r in rows if r.figure == figure and r.at == at and r.ratio is not None}
        if peer not in found or to not in found:
            return None
        return found[peer].ratio / found[to].ratio  # type: ignore[operator]

    def size(peer: str) -> int | None:
        return next((r.bytes for r in rows if (r.figure, r.peer, r.at) == ("memory", peer, 20)), None)

    table: list[tuple[str, float | None, str, float]] = []
    if device == "cpu":
        table += [
            ("inference, batch 1: authors' / ours", ratio("inference", "authors' formulation", "ours", 1), ">=", 2.5),
            ("inference, batch 1: ours / floor", ratio("inference", "ours", "floor", 1), "<=", 1.05),
            ("inference, batch 1: baked / floor", ratio("inference", "ours baked", "floor", 1), "<=", 1.02),
            ("training, fp32: ours / floor", ratio("training", "ours", "floor", 128), "<=", 1.03),
            ("training: floor fp32 / ours bf16", ratio("training", "floor", "ours bf16", 128), ">=", 1.4),
        ]
        # Across m nothing takes turns: the floor, which knows no m, stands for how fast the machine was then.
        by_m = [ratio("axes m", "ours", "floor", m) for m in (2, 64)]
        table.append(("inference, m = 64 / m = 2, each over the floor", _divide(by_m[1], by_m[0]), "<=", 1.05))
    else:
        table += [
            (
                "training: authors' / ours, graph",
                ratio("training", "authors' formulation", "ours, graph", 128),
                ">=",
                5.0,
            ),
            (
                "training: ours / floor, both as graphs",
                ratio("training", "ours, graph", "floor, graph", 128),
                "<=",
                1.1,
            ),
            (
                "inference, batch 1: authors' / ours, graph",
                ratio("inference", "authors' formulation", "ours, graph", 1),
                ">=",
                10.0,
            ),
        ]
    table += [
        ("memory at 20 steps: checkpoint / autograd", _divide(size("checkpoint"), size("autograd")), "<=", 0.3),
        ("time at 20 steps: checkpoint / autograd", ratio("memory, time", "checkpoint", "autograd", 20), "<=", 1.4),
    ]
    result: list[tuple[str, str, bool | None]] = []
    for what, value, sign, limit in table:
        asked = f"{what} {'at least' if sign == '>=' else 'at most'} {limit:g}"
        met = None if value is None else value >= limit if sign == ">=" else value <= limit
        result.append((asked, "not measured" if value is None else f"{value:.3f}", met))
    return result


def _divide(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _markdown(rows: Sequence[Row], machine: dict[str, Any], device: str) -> str:
    lines = [f"# Benchmark, {device}", "", "Written by `gode-zoo benchmark`; nothing here is edited by hand.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += [
        "",
        "Times are medians of repeats that took turns; ratios are medians of the ratios within each turn, with their",
    ]
    lines += [
        "quartiles, to the first peer of the same table and size. Every peer was checked to give the same states to 1e-5."
    ]
    kind = torch.device(device).type
    lines += ["", "## Targets", "", "| target | measured | |", "| --- | --- | --- |"]
    verdict = {True: "met", False: "not met", None: ""}
    lines += [f"| {asked} | {value} | {verdict[met]} |" for asked, value, met in targets(rows, kind)]
    if kind == "cpu":
        lines += ["", "CUDA: not measured here."]
    for figure in dict.fromkeys(row.figure for row in rows):
        lines += ["", f"## {figure[0].upper()}{figure[1:]}", ""]
        lines += [
            "| at | peer | ms | ratio (quartiles) | peak MB | NFE | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in (row for row in rows if row.figure == figure):
            spread = "" if row.ratio is None else f"{row.ratio:.3f} ({row.ratio_low:.3f} - {row.ratio_high:.3f})"
            cells = [
                f"{row.at:g}",
                row.peer,
                "" if row.seconds is None else f"{1e3 * row.seconds:.2f}",
                spread,
                "" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
                "" if row.nfe is None else str(row.nfe),
                row.note,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_report(rows: Sequence[Row], title: str) -> Figure:
    """Milliseconds of each peer against batch size, m, steps and T, and peak memory against steps, where measured."""
    from ..plots import new_figure

    panels = [
        ("inference", "batch size", "seconds", 1e3, "ms"),
        ("axes m", "m, basis functions", "seconds", 1e3, "ms, batch 1"),
        ("axes steps", "Euler steps", "seconds", 1e3, "ms, batch 1"),
        ("axes T", "T, steps of 0.05", "seconds", 1e3, "ms, batch 1"),
        ("memory", "steps", "bytes", 1e-6, "peak MB of the gradients"),
    ]
    shown = [panel for panel in panels if any(row.figure == panel[0] for row in rows)]
    figure = new_figure(4.2 * max(len(shown), 1), 4.0)
    figure.suptitle(title)
    for index, (name, xlabel, key, scale, ylabel) in enumerate(shown):
        ax = figure.add_subplot(1, len(shown), index + 1)
        own = [row for row in rows if row.figure == name and getattr(row, key) is not None]
        for peer in dict.fromkeys(row.peer for row in own):
            points = sorted((row.at, scale * getattr(row, key)) for row in own if row.peer == peer)
            if len(points) == 1:
                ax.axhline(points[0][1], linestyle=":", color="black", label=peer)
            else:
                ax.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=3, label=peer)
        ax.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
        measured = sorted({row.at for row in own if sum(r.peer == row.peer for r in own) > 1})
        ax.set_xticks(measured, [f"{at:g}" for at in measured])  # the powers of ten would lie between them
        ax.set_xticks([], minor=True)
        ax.legend(fontsize="xx-small")
    return figure
