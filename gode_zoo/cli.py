"""The command line: one thin command a verb. What a command does lies in the module of its name (`list`: listing.py)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

__all__ = ["app", "main"]

app = typer.Typer(
    name="gode-zoo",
    help="Neural ODEs whose weights are B-splines of time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[Path | None, typer.Option(help="Folder of datasets; default GODE_ZOO_DATA and the cache.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default CUDA where there is one.")]


def main() -> None:
    """Run the command line; every error that a user can cause is one line on stderr and status 2."""
    from rich.markup import escape

    try:
        app()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(_one_line(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _version(show: bool) -> None:
    if show:
        from . import __version__

        typer.echo(f"gode_zoo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


@app.command("list")
def list_models() -> None:
    """List the models, and the error of those that have weights."""
    from .listing import list_zoo

    table = Table("model", "weights", "parameters", "dataset", "test error %")
    for m in list_zoo():
        error = "-" if m.error is None else f"{m.error:.2f}"
        table.add_row(m.arch, m.tag or "-", f"{m.num_parameters:,}", m.dataset or "-", error)
    Console().print(table)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="A bundled recipe's name, such as gode_mnist_m4.modern, or a YAML file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<model>.<tag>.")] = None,
    data_dir: DataDir = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many updates, with a checkpoint.")] = None,
) -> None:
    """Train a model as a recipe says. Ctrl-C saves; --resume goes on."""
    from .recipes import load_recipe
    from .train import TrainingInterrupted
    from .train import train as run

    loaded = load_recipe(recipe)
    folder = out or Path("runs") / loaded.name
    again = f"gode-zoo train {recipe} --out {folder} --resume"
    try:
        result = run(loaded, folder, data_dir=data_dir, device=device, resume=resume, max_steps=max_steps)
    except TrainingInterrupted as stop:
        Console(stderr=True).print(f"{stop}. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if result.finished and result.last is not None:
        typer.echo(f"{folder}: test {result.last} after the last epoch")
    else:
        typer.echo(f"{folder}: stopped after step {result.step} as asked. Go on with: {again}")


@app.command()
def evaluate(
    model: Annotated[list[str] | None, typer.Argument(help="arch, arch.tag, or the folder of a finished run.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every model that has weights.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where an error is not the one reported.")] = False,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Measure the test error anew and print it beside the one reported."""
    from .evaluate import TOLERANCE
    from .evaluate import evaluate as measure
    from .models._pretrained import list_weights
    from .outcomes import OutcomeScore

    if bool(model) == every:
        raise ValueError("give the models to evaluate, or --all (one of the two)")
    names = [f"{arch}.{tag}" for arch, tag, _ in list_weights()] if every else (model or [])
    if not names:
        raise ValueError("no weights are bundled: nothing to evaluate")
    results = [measure(name, data_dir=data_dir, device=device) for name in names]
    table = Table(
        "model",
        "dataset",
        "images",
        "reported",
        "measured",
        "",
        title="Test error, % (or deviance)",
        box=SIMPLE,
        pad_edge=False,
    )
    for r in results:
        verdict = "[green]agrees[/]" if r.agrees else "[red]differs[/]"
        errors = (f"{r.reported.error:.2f}", f"{r.measured.error:.2f}")
        table.add_row(r.name, r.dataset, f"{r.measured.total:,}", *errors, verdict)
    Console().print(table)
    for r in (r for r in results if isinstance(r.measured, OutcomeScore)):
        typer.echo(f"{r.name}: {r.measured}. Predictive intervals, held-out outcomes inside:")
        for row in r.coverage:
            typer.echo(
                f"  {100 * row.level:.0f} %: {100 * row.plain:.1f} %, calibrated {100 * (row.calibrated or 0):.1f} %"
            )
    if check and not all(r.agrees for r in results):
        Console(stderr=True).print(
            f"[red]error:[/] a measured error is more than {TOLERANCE} points from the reported one"
        )
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, or the folder of a finished run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    topk: Annotated[int, typer.Option(help="Classes to show of each image.")] = 3,
) -> None:
    """Classify images and show the likeliest classes."""
    from .predict import predict as classify

    table = Table("image", "class", "probability")
    for path, row in zip(images, classify(model, images, topk), strict=True):
        for i, (name, probability) in enumerate(row):
            table.add_row(str(path) if i == 0 else "", name, f"{100 * probability:.1f} %")
    Console().print(table)


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help="table1, table2, table3, table4 or figure2.")],
    seeds: Annotated[int, typer.Option(help="Runs of each row of a table.")] = 1,
    epochs: Annotated[int, typer.Option(help="Epochs of each run; fewer than the paper's 160 are labelled so.")] = 160,
    out: Annotated[Path, typer.Option(help="Folder of the tables and figures.")] = Path("results"),
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")] = Path("runs/reproduce"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with runs that were interrupted.")] = False,
    no_run: Annotated[bool, typer.Option("--no-run", help="Train nothing: show what there is.")] = False,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Run a table or figure of the paper again and put ours beside it. Ctrl-C saves; --resume goes on."""
    from . import reproduce as again
    from .train import TrainingInterrupted

    options: dict[str, Any] = {"epochs": epochs, "runs": runs, "data_dir": data_dir, "device": device, "resume": resume}
    options["run_missing"] = not no_run
    try:
        if what == "figure2":
            from .figure2 import plot_figure2

            figure = plot_figure2(again.figure2_runs(**options))
            out.mkdir(parents=True, exist_ok=True)
            for suffix in ("png", "svg"):
                figure.savefig(out / f"figure2.{suffix}")
            typer.echo(f"wrote {out / 'figure2.png'} and .svg")
            return
        results = list(again.reproduce(what, seeds=seeds, **options | {"run_missing": False}))
        if not no_run:
            again.write_table(what, results, out)
            for i, result in enumerate(again.reproduce(what, seeds=seeds, **options)):
                results[i] = result
                again.write_table(what, results, out)  # after each row: an interruption loses none
    except TrainingInterrupted as stop:
        Console(stderr=True).print(f"{stop}. Go on with the same command and --resume", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    head, cells = again.table_cells(results)
    table = Table(*(Column(name, no_wrap=name != "state") for name in head), box=SIMPLE, padding=0, pad_edge=False)
    table.title = again.title(what, results)
    for row in cells:
        table.add_row(*row)
    Console().print(table)
    if not no_run:
        typer.echo(f"wrote {out / what}.csv and .md")


@app.command()
def benchmark(
    model: Annotated[str, typer.Argument(help="A GODE model.")] = "gode_cifar10_m8",
    repeats: Annotated[int, typer.Option(help="Interleaved repeats.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Batch of the training step.")] = 128,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
) -> None:
    """Time a model beside other ways to run the same network."""
    from .benchmark import run

    table = Table("what", "beside", "ours ms", "other ms", "other / ours (quartiles)")
    for row in run(model, repeats=repeats, batch_size=batch_size, device=device):
        other = "" if row.peer_s is None else f"{1e3 * row.peer_s:.1f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_low:.2f} - {row.ratio_high:.2f})"
        table.add_row(row.what, row.peer, f"{1e3 * row.ours_s:.1f}", other, ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
