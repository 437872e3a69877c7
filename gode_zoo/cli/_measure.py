"""Verbs that measure what a model costs: benchmark, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ._shared import DataDir, Device, Json, app, examples, print_json

PANEL = "Measure"  # of the help


@app.command(
    rich_help_panel=PANEL,
    epilog=examples("gode-zoo benchmark --quick --out /tmp/benchmark", "gode-zoo benchmark --device cuda"),
)
def benchmark(
    model: Annotated[str, typer.Argument(help="A GODE model with Euler steps.")] = "gode_cifar10_m8",
    what: Annotated[str | None, typer.Option(help="Figures, with commas; default all.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("results"),
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats: to see that it works, not to report.")] = False,
    as_json: Json = False,
) -> None:
    """Time and weigh a model beside every other way to run the same network; writes a CSV, tables and plots."""
    from ..benchmark import hardware, run, write_report
    from ..benchmark.report import targets

    names = None if what is None else [part.strip() for part in what.split(",")]
    rows = []
    for row in run(names, model, device=device, quick=quick):
        rows.append(row)
        if as_json:
            continue
        parts = [f"{row.figure} {row.at:g}: {row.peer}"]
        parts += [] if row.seconds is None else [f"{1e3 * row.seconds:.2f} ms"]
        parts += [] if row.ratio is None else [f"ratio {row.ratio:.3f} ({row.ratio_low:.3f} - {row.ratio_high:.3f})"]
        parts += [] if row.bytes is None else [f"{row.bytes / 1e6:.1f} MB"]
        typer.echo(", ".join([*parts, row.note] if row.note else parts))
    report = write_report(rows, out, hardware(device), device)
    if as_json:
        return print_json(rows)
    table = Table("target", "measured", "", box=SIMPLE)
    for asked, value, met in targets(rows, device.partition(":")[0]):
        table.add_row(asked, value, "" if met is None else "[green]met[/]" if met else "[red]not met[/]")
    Console().print(table)
    typer.echo("\n".join(map(str, report)))


@app.command(
    rich_help_panel=PANEL,
    epilog=examples("gode-zoo sweep gode_mnist_m4", "gode-zoo sweep gode_mnist_m4 --solver euler,rk4 --steps 1,2,5"),
)
def sweep(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, or the folder of a finished run.")],
    solver: Annotated[str, typer.Option(help="Solvers, with commas.")] = "euler,midpoint,rk4",
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas.")] = "1,2,3,5,10,20,40",
    max_loss: Annotated[float, typer.Option(help="Points of accuracy that may be lost.")] = 0.5,
    images: Annotated[int | None, typer.Option(help="Test images to classify.")] = 2000,
    out: Annotated[
        Path | None, typer.Option(help="CSV and PNG without their ending; default results/sweep_MODEL.")
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Accuracy against cost for solvers and grids, and the cheapest setting within a loss."""
    from ..sweep import cheapest, plot_sweep, write_csv
    from ..sweep import sweep as measure

    try:
        numbers = [int(part) for part in steps.split(",")]
    except ValueError:
        raise ValueError(f"steps={steps!r}: must be whole numbers with commas between, such as 5,10,20") from None
    names = [part.strip() for part in solver.split(",")]
    if not max_loss >= 0:
        raise ValueError(f"max_loss={max_loss}: must be 0 or more points of accuracy")
    points = measure(model, solvers=names, steps=numbers, images=images, data_dir=data_dir, device=device)
    chosen = cheapest(points, max_loss)
    base = out or Path("results") / f"sweep_{Path(model).name}"
    base.parent.mkdir(parents=True, exist_ok=True)
    write_csv(points, base.with_name(base.name + ".csv"))
    picture = base.with_name(base.name + ".png")
    plot_sweep(points, chosen, model).savefig(picture)
    if as_json:
        return print_json({"points": points, "cheapest": chosen})
    table = Table("solver", "steps", "NFE", "ms", "accuracy %", "loss", "")
    for p in points:
        note = "cheapest" if p is chosen else "published" if p.published else ""
        table.add_row(p.solver, str(p.steps), str(p.nfe), f"{p.ms:.2f}", f"{p.accuracy:.2f}", f"{p.loss:.2f}", note)
    Console().print(table)
    typer.echo(
        f"{base}.csv, .png. Cheapest within {max_loss} points: solver={chosen.solver!r}, num_steps={chosen.steps} "
        f"({chosen.nfe} calls, loses {chosen.loss:.2f})"
    )
