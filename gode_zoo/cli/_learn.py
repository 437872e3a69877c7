"""Verbs that train: finetune, train, reproduce, choose-penalty, compress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from ._shared import DataDir, Device, Json, app, examples, print_coverage, print_json

PANEL = "Train"  # of the help


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo finetune gode_cifar10_m8 photos/",
        "gode-zoo finetune gode_cifar10_m8 photos/ --out runs/photos --epochs 50 --image-size 64 --flip",
        "gode-zoo finetune gode_mnist_m4 labels.csv --freeze all-but-head --lr 0.01",
        "gode-zoo finetune gode_cifar10_m8 counts.csv --family poisson",
        "gode-zoo finetune gode_cifar10_m8 photos/ --out runs/photos --resume",
    ),
)
def finetune(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, hf-hub:ORG/NAME, or a run's folder.")],
    data: Annotated[
        str,
        typer.Argument(help="A folder or tar of class folders, a CSV of paths and labels, or torch/… or hfds/…"),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<data>.finetuned.")] = None,
    epochs: Annotated[int, typer.Option(help="At most so many.")] = 30,
    family: Annotated[
        str,
        typer.Option(
            help="Of outcomes in place of classes: poisson, gaussian, gamma, bernoulli, negative_binomial, or in YAML "
            "such as '{name: negative_binomial, dispersion: 0.2}'."
        ),
    ] = "categorical",
    freeze: Annotated[str, typer.Option(help="What not to train: none, stem, or all-but-head.")] = "none",
    lr: Annotated[str, typer.Option(help="Peak learning rate, or auto for a short range test.")] = "auto",
    image_size: Annotated[int | None, typer.Option(help="Height and width; default the model's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default by the number of images, 8 to 64.")] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(help="Factor on the rate from layer to layer, downwards; default 0.75, from scratch 1."),
    ] = None,
    val_fraction: Annotated[float, typer.Option(help="Held out, where there is no val split.")] = 0.2,
    patience: Annotated[int, typer.Option(help="Epochs without a better validation error; 0: no early stop.")] = 10,
    balanced: Annotated[bool, typer.Option("--balanced", help="Draw each class equally often.")] = False,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images at random; not for digits or letters.")] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Random weights instead, for comparison.")
    ] = False,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out images that cannot be read.")] = False,
    amp: Annotated[str, typer.Option(help="bf16, none, or auto: bf16 where the chip computes in it.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the split, the order and the augmentation.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder; same arguments.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's logs too.")] = False,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on your images, and write a page that shows what came of it. Ctrl-C saves; --resume goes on."""
    import shlex

    from ..finetune import finetune as run

    folder = out or Path("runs") / f"{Path(data).name.partition('.')[0] or 'images'}.finetuned"
    typed = shlex.join(["gode-zoo", *sys.argv[1:]])
    again = typed if resume else f"{typed} --resume"
    try:
        result = run(
            model, data, folder, epochs=epochs, batch_size=batch_size, lr=_number_or_auto("--lr", lr),
            family=_family(family), freeze=freeze,
            layer_decay=layer_decay, image_size=image_size, val_fraction=val_fraction, patience=patience,
            balanced=balanced, flip=flip, pretrained=not from_scratch, skip_broken=skip_broken,
            amp=None if amp == "auto" else amp, seed=seed, resume=resume, tensorboard=tensorboard, data_dir=data_dir,
            device=device, command=typed,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        what = str(stop) or "stopped before training began"
        Console(stderr=True).print(f"{what}. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        return print_json(result)
    typer.echo(f"{folder}: {result.split} {result.score}, best epoch {result.best_epoch} of {len(result.history)}")
    if result.coverage:
        typer.echo("Predictive intervals, held-out outcomes inside:")
        print_coverage(result.coverage)
    typer.echo(f"See {folder / 'report.html'}; use it: gode-zoo predict {shlex.quote(str(folder))} IMAGE")


def _family(text: str) -> Any:
    import yaml

    if not text.startswith("{"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"--family = {text!r} is neither a name nor YAML ({error}): correct it") from None


def _number_or_auto(option: str, text: str) -> float | None:
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise ValueError(f"{option} = {text!r} is not possible (allowed: a number, or auto): change it") from None


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo train gode_mnist_m4.modern --out runs/mine",
        "gode-zoo train mine.yaml --device cuda",
        "gode-zoo train gode_mnist_m4.modern --out runs/mine --resume",
    ),
)
def train(
    recipe: Annotated[
        str, typer.Argument(help="A bundled recipe's name, such as gode_mnist_m4.modern, or a YAML file.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<model>.<tag>.")] = None,
    data_dir: DataDir = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the folder.")] = False,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many updates, with a checkpoint.")] = None,
    as_json: Json = False,
) -> None:
    """Train a model as a recipe says. Ctrl-C saves; --resume goes on."""
    from ..recipes import load_recipe
    from ..train import TrainingInterrupted
    from ..train import train as run

    loaded = load_recipe(recipe)
    folder = out or Path("runs") / loaded.name
    again = f"gode-zoo train {recipe} --out {folder} --resume"
    try:
        result = run(loaded, folder, data_dir=data_dir, device=device, resume=resume, max_steps=max_steps)
    except TrainingInterrupted as stop:
        Console(stderr=True).print(f"{stop}. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(result)
    elif result.finished and result.last is not None:
        typer.echo(f"{folder}: test {result.last} after the last epoch")
    else:
        typer.echo(f"{folder}: stopped after step {result.step} as asked. Go on with: {again}")


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo reproduce table1 --epochs 10",
        "gode-zoo reproduce table1 --epochs 10 --resume",
        "gode-zoo reproduce table1 --seeds 3 --jobs 6",
        "gode-zoo reproduce figure2 --no-run",
    ),
)
def reproduce(
    what: Annotated[str, typer.Argument(help="table1, table2, table3, table4 or figure2.")],
    seeds: Annotated[int, typer.Option(help="Runs of each row of a table.")] = 1,
    epochs: Annotated[int, typer.Option(help="Epochs of each run; fewer than the paper's 160 are labelled so.")] = 160,
    amp: Annotated[str, typer.Option(help="none, the paper's float32, or bf16, for less time; labelled so.")] = "none",
    out: Annotated[Path, typer.Option(help="Folder of the tables and figures.")] = Path("results"),
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")] = Path("runs/reproduce"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with runs that were interrupted.")] = False,
    no_run: Annotated[bool, typer.Option("--no-run", help="Train nothing: show what there is.")] = False,
    jobs: Annotated[int, typer.Option(help="Runs of a table to train at a time, a process each.")] = 1,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run a table or figure of the paper again and put ours beside it. Ctrl-C saves; --resume goes on."""
    from .. import reproduce as again
    from ..ordering import orderings
    from ..train import TrainingInterrupted

    options: dict[str, Any] = {"epochs": epochs, "amp": amp, "runs": runs, "run_missing": not no_run}
    options |= {"data_dir": data_dir, "device": device, "resume": resume}
    try:
        if what == "figure2":
            from ..figure2 import plot_figure2

            figure = plot_figure2(again.figure2_runs(**options))
            out.mkdir(parents=True, exist_ok=True)
            for suffix in ("png", "svg"):
                figure.savefig(out / f"figure2.{suffix}")
            if as_json:
                return print_json([out / "figure2.png", out / "figure2.svg"])
            typer.echo(f"wrote {out / 'figure2.png'} and .svg")
            return
        results = list(again.reproduce(what, seeds=seeds, **options | {"run_missing": False}))
        if not no_run:
            again.write_table(what, results, out)
            for i, result in enumerate(again.reproduce(what, seeds=seeds, jobs=jobs, **options)):
                results[i] = result
                again.write_table(what, results, out)  # after each row: an interruption loses none
    except TrainingInterrupted as stop:
        Console(stderr=True).print(f"{stop}. Go on with the same command and --resume", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        return print_json(results)
    head, cells = again.table_cells(results)
    table = Table(*(Column(name, no_wrap=name != "state") for name in head), box=SIMPLE, padding=0, pad_edge=False)
    table.title = again.title(what, results)
    for row in cells:
        table.add_row(*row)
    Console().print(table)
    for line in orderings(results):
        typer.echo(line)
    if not no_run:
        typer.echo(f"wrote {out / what}.csv and .md")


@app.command(
    "choose-penalty",
    rich_help_panel=PANEL,
    epilog=examples("gode-zoo choose-penalty mine.yaml 0 1e-5 1e-4 --kind roughness"),
)
def choose_penalty(
    recipe: Annotated[str, typer.Argument(help="A recipe with holdout: a bundled one's name, or a YAML file.")],
    factors: Annotated[list[float], typer.Argument(help="Factors to try, such as 0 1e-5 1e-4.")],
    kind: Annotated[str, typer.Option(help="roughness, difference or ridge.")] = "roughness",
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; default runs/<recipe>.<kind>.")] = None,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train with each factor of a penalty and choose the one with the least error on the held-out images."""
    from ..choose_penalty import choose_penalty as choose
    from ..recipes import load_recipe

    loaded = load_recipe(recipe)
    folder = out or Path("runs") / f"{loaded.name}.{kind}"
    choice = choose(loaded, kind, factors, folder, data_dir=data_dir, device=device)
    if as_json:
        return print_json(choice)
    table = Table("factor", "held-out error %", kind, "", box=SIMPLE)
    for trial in choice.trials:
        chosen = "chosen" if trial is choice.best else ""
        table.add_row(f"{trial.factor:g}", f"{trial.val_error:.2f}", f"{trial.penalty:.4g}", chosen)
    Console().print(table)


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo compress gode_cifar10_m8 --num-basis 4", "gode-zoo compress runs/mine --num-basis 2 --out runs/small"
    ),
)
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
    as_json: Json = False,
) -> None:
    """Make a model smaller by projection onto fewer basis functions; measure it before, after, and fine-tuned."""
    from ..compress import compress_published

    result = compress_published(
        model, num_basis, degree=degree, knots=knots, steps=steps, lr=lr, out_dir=out, data_dir=data_dir, device=device
    )
    if as_json:
        return print_json(
            {key: getattr(result, key) for key in ("name", "dataset", "parameters", "before", "after", "finetuned")}
        )
    table = Table("", "parameters", "test error %", title=f"{result.name} on {result.dataset}", box=SIMPLE)
    table.add_row("as published", f"{result.parameters[0]:,}", f"{result.before.error:.2f}")
    table.add_row(f"{num_basis} basis functions", f"{result.parameters[1]:,}", f"{result.after.error:.2f}")
    if result.finetuned is not None:
        table.add_row(f"fine-tuned, {steps} steps", f"{result.parameters[1]:,}", f"{result.finetuned.error:.2f}")
    Console().print(table)
