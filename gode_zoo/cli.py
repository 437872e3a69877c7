"""The command line: one thin command a verb. What a command does lies in the module of its name (`list`: listing.py)."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

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
        typer.echo(f"{folder}: test error {result.last.error:.2f} % after the last epoch")
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

    if bool(model) == every:
        raise ValueError("give the models to evaluate, or --all (one of the two)")
    names = [f"{arch}.{tag}" for arch, tag, _ in list_weights()] if every else (model or [])
    if not names:
        raise ValueError("no weights are bundled: nothing to evaluate")
    results = [measure(name, data_dir=data_dir, device=device) for name in names]
    table = Table(
        "model", "dataset", "images", "reported", "measured", "", title="Test error, %", box=SIMPLE, pad_edge=False
    )
    for r in results:
        verdict = "[green]agrees[/]" if r.agrees else "[red]differs[/]"
        errors = (f"{r.reported.error:.2f}", f"{r.measured.error:.2f}")
        table.add_row(r.name, r.dataset, f"{r.measured.total:,}", *errors, verdict)
    Console().print(table)
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
def compress(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, or the folder of a finished run.")],
    num_basis: Annotated[int, typer.Option(help="Basis functions to keep.")],
    degree: Annotated[int | None, typer.Option(help="Degree of the new ones; default as now.")] = None,
    knots: Annotated[str | None, typer.Option(help="uniform or clamped; default as now.")] = None,
    steps: Annotated[int, typer.Option(help="Updates of the fine-tune; 0 for none.")] = 200,
    lr: Annotated[float, typer.Option(help="Its first learning rate.")] = 0.01,
    out: Annotated[Path | None, typer.Option(help="Folder for the smaller model.")] = None,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Make a model smaller by projection onto fewer basis functions; measure it before, after, and fine-tuned."""
    from .compress import compress_published

    result = compress_published(
        model, num_basis, degree=degree, knots=knots, steps=steps, lr=lr, out_dir=out, data_dir=data_dir, device=device
    )
    table = Table("", "parameters", "test error %", title=f"{result.name} on {result.dataset}", box=SIMPLE)
    table.add_row("as published", f"{result.parameters[0]:,}", f"{result.before.error:.2f}")
    table.add_row(f"{num_basis} basis functions", f"{result.parameters[1]:,}", f"{result.after.error:.2f}")
    if result.finetuned is not None:
        table.add_row(f"fine-tuned, {steps} steps", f"{result.parameters[1]:,}", f"{result.finetuned.error:.2f}")
    Console().print(table)


@app.command("choose-penalty")
def choose_penalty(
    recipe: Annotated[str, typer.Argument(help="A recipe with holdout: a bundled one's name, or a YAML file.")],
    factors: Annotated[list[float], typer.Argument(help="Factors to try, such as 0 1e-5 1e-4.")],
    kind: Annotated[str, typer.Option(help="roughness, difference or ridge.")] = "roughness",
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; default runs/<recipe>.<kind>.")] = None,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Train with each factor of a penalty and choose the one with the least error on the held-out images."""
    from .choose_penalty import choose_penalty as choose
    from .recipes import load_recipe

    loaded = load_recipe(recipe)
    folder = out or Path("runs") / f"{loaded.name}.{kind}"
    choice = choose(loaded, kind, factors, folder, data_dir=data_dir, device=device)
    table = Table("factor", "held-out error %", kind, "", box=SIMPLE)
    for trial in choice.trials:
        chosen = "chosen" if trial is choice.best else ""
        table.add_row(f"{trial.factor:g}", f"{trial.val_error:.2f}", f"{trial.penalty:.4g}", chosen)
    Console().print(table)


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
