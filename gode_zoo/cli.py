"""The command line: one thin command a verb. What a command does lies in the module of its name (`list`: listing.py).

Exit codes, the same for every verb:
    0    done
    1    done, but a check failed or some of the files could not be used
    2    nothing done: wrong input, or an error that stopped it; one line on stderr says what, and the mend
    130  stopped by Ctrl-C

Results go to stdout, as a table or with `--json` as one JSON value; progress, log and errors go to stderr. A progress bar
is shown on a terminal alone, and colours as well (`NO_COLOR` turns them off).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

__all__ = ["app", "main"]

app = typer.Typer(
    name="gode-zoo",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 a check failed or some files could not be used, 2 wrong input or an error, "
    "130 stopped by Ctrl-C.\n\nShell completion: gode-zoo --install-completion",
)

hub_app = typer.Typer(help="The folders that are published.", no_args_is_help=True)
app.add_typer(hub_app, name="hub")

Timeout = Annotated[float, typer.Option(help="Seconds for which the Hub may keep silent.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of datasets; default GODE_ZOO_DATA and the cache.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default CUDA where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

# ClickException, of the click that typer has: some versions carry their own.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]


def main() -> None:
    """Run the command line; every error that a user can cause is one line on stderr and status 2."""
    try:
        code = app(prog_name="gode-zoo", standalone_mode=False)
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            context: Any = getattr(error, "ctx", None)
            command = context.command_path if context else "gode-zoo"
            _error(f"{error.format_message().rstrip('.')} (see {command} --help)")
        elif isinstance(error, (ValueError, RuntimeError, OSError, ImportError, MemoryError)):
            _error(str(error) or type(error).__name__)
        else:
            raise
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _error(message: str) -> None:
    """One line on stderr, red where that is a terminal."""
    one_line = " ".join(message.split())
    Console(stderr=True).print(f"[red]error:[/] {escape(one_line)}", soft_wrap=True, highlight=False)


def _print_json(value: Any) -> None:
    """One JSON value on stdout; dataclasses are objects and paths are text."""

    def plain(other: Any) -> Any:
        is_object = dataclasses.is_dataclass(other) and not isinstance(other, type)
        return dataclasses.asdict(other) if is_object else str(other)

    typer.echo(json.dumps(value, default=plain, indent=2, ensure_ascii=False))


def _examples(*lines: str) -> str:
    """The foot of a verb's help: its examples, each on a line of its own."""
    return "\n\n".join(("[bold]Examples[/]", *(line.replace("[", "\\[") for line in lines)))


def _version(show: bool) -> None:
    if show:
        from . import __version__

        typer.echo(f"gode_zoo {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Neural ODEs whose weights are B-splines of time: a zoo of image classifiers to use, fine-tune and train."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "httpx2", "timm"):  # a line for each request and each file
        logging.getLogger(name).setLevel(logging.WARNING)


@app.command("list", epilog=_examples("gode-zoo list", "gode-zoo list --json"))
def list_models(as_json: Json = False) -> None:
    """List the models, and the error of those that have weights."""
    from .listing import list_zoo

    if as_json:
        return _print_json([m._asdict() for m in list_zoo()])
    table = Table("model", "weights", "parameters", "dataset", "test error %")
    for m in list_zoo():
        error = "-" if m.error is None else f"{m.error:.2f}"
        table.add_row(m.arch, m.tag or "-", f"{m.num_parameters:,}", m.dataset or "-", error)
    Console().print(table)


@app.command(
    epilog=_examples(
        "gode-zoo train gode_mnist_m4.modern --out runs/mine",
        "gode-zoo train mine.yaml --device cuda",
        "gode-zoo train gode_mnist_m4.modern --out runs/mine --resume",
    )
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
    if as_json:
        _print_json(result)
    elif result.finished and result.last is not None:
        typer.echo(f"{folder}: test {result.last} after the last epoch")
    else:
        typer.echo(f"{folder}: stopped after step {result.step} as asked. Go on with: {again}")


@app.command(
    epilog=_examples("gode-zoo evaluate gode_mnist_m4 --check", "gode-zoo evaluate --all --data-dir ~/data --json")
)
def evaluate(
    model: Annotated[
        list[str] | None, typer.Argument(help="arch, arch.tag, hf-hub:ORG/NAME, or a run's folder.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every model that has weights.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where an error is not the one reported.")] = False,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
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
    if as_json:
        _print_json([dataclasses.asdict(r) | {"agrees": r.agrees} for r in results])
    else:
        _print_evaluations(results)
    if check and not all(r.agrees for r in results):
        _error(f"a measured error is more than {TOLERANCE} points from the reported one")
        raise typer.Exit(1)


def _print_evaluations(results: list[Any]) -> None:
    from .outcomes import OutcomeScore

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


@app.command(
    epilog=_examples(
        "gode-zoo finetune gode_cifar10_m8 photos/",
        "gode-zoo finetune gode_cifar10_m8 photos/ --out runs/photos --epochs 50 --image-size 64 --flip",
        "gode-zoo finetune gode_mnist_m4 labels.csv --freeze all-but-head --lr 0.01",
        "gode-zoo finetune gode_cifar10_m8 photos/ --out runs/photos --resume",
    )
)
def finetune(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, hf-hub:ORG/NAME, or a run's folder.")],
    data: Annotated[
        str,
        typer.Argument(help="A folder or tar of class folders, a CSV of paths and labels, or torch/… or hfds/…"),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/<data>.finetuned.")] = None,
    epochs: Annotated[int, typer.Option(help="At most so many.")] = 30,
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

    from .finetune import finetune as run

    folder = out or Path("runs") / f"{Path(data).name.partition('.')[0] or 'images'}.finetuned"
    typed = shlex.join(["gode-zoo", *sys.argv[1:]])
    again = typed if resume else f"{typed} --resume"
    try:
        result = run(
            model, data, folder, epochs=epochs, batch_size=batch_size, lr=_number_or_auto("--lr", lr), freeze=freeze,
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
        return _print_json(result)
    error = "" if result.error is None else f"{result.split} error {result.error:.2f} %"
    typer.echo(f"{folder}: {error}, best epoch {result.best_epoch} of {len(result.history)}")
    typer.echo(f"See {folder / 'report.html'}; use it: gode-zoo predict {shlex.quote(str(folder))} IMAGE")


def _number_or_auto(option: str, text: str) -> float | None:
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise ValueError(f"{option} = {text!r} is not possible (allowed: a number, or auto): change it") from None


@app.command(
    epilog=_examples(
        "gode-zoo predict gode_mnist_m4 digit.png",
        "gode-zoo predict runs/photos.finetuned photos/new/ 'more/**/*.jpg' --csv > predicted.csv",
        "gode-zoo predict runs/photos.finetuned photos/new/ --topk 1 --json",
    )
)
def predict(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, hf-hub:ORG/NAME, or a run's folder.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders, and patterns in quotes.")],
    topk: Annotated[int, typer.Option(help="Classes to show of each image.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: path, rank, class, probability.")] = False,
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Classify images. What cannot be read is listed at the end, and the exit code is then 1."""
    from .predict import find_files
    from .predict import predict as classify
    from .run_display import counting

    if as_csv and as_json:
        raise ValueError("--csv and --json: give one of the two")
    files = find_files(images)
    done = []
    with counting(True, "Classifying", len(files)) as show:
        for prediction in classify(model, files, topk, batch_size=batch_size, device=device):
            done.append(prediction)
            show(len(done))
    read, failed = [p for p in done if not p.problem], [p for p in done if p.problem]
    if as_json:
        _print_json(done)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "rank", "class", "probability"])
        for p in read:
            writer.writerows([p.path, rank, name, f"{share:.6f}"] for rank, (name, share) in enumerate(p.classes, 1))
    elif read:
        table = Table("image", "class", "probability")
        for p in read:
            for i, (name, share) in enumerate(p.classes):
                table.add_row(escape(str(p.path)) if i == 0 else "", escape(name), f"{100 * share:.1f} %")
        Console().print(table)
    for p in failed:
        _error(f"{p.path}: {p.problem}")
    if failed:
        _error(f"{len(failed):,} of {len(done):,} files could not be read")
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "gode-zoo reproduce table1 --epochs 10",
        "gode-zoo reproduce table1 --epochs 10 --resume",
        "gode-zoo reproduce figure2 --no-run",
    )
)
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


@app.command(
    epilog=_examples(
        "gode-zoo publish runs/mine --repo-id ORG/NAME --dry-run",
        "gode-zoo publish runs/mine --repo-id ORG/NAME --private",
    )
)
def publish(
    folder: Annotated[Path, typer.Argument(help="hub/<arch>.<tag>, or the folder of a finished run.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="ORG/NAME on the Hub; it is made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private; refuse one that is public.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, which must exist; default main.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files, sizes and hashes; send nothing.")] = False,
    timeout: Timeout = 20.0,
    as_json: Json = False,
) -> None:
    """Publish a finished run to the Hugging Face Hub: weights, card, recipe, metrics and log, in one commit."""
    from .publish import publish as push

    done = push(
        folder, repo_id, private=private, revision=revision, create_pr=create_pr, dry_run=dry_run, timeout=timeout
    )
    if as_json:
        return _print_json(done)
    if dry_run:
        for file in done.files:
            typer.echo(f"{file.sha256}  {file.size:>13,}  {file.name}")
        typer.echo(f"{done.repo_id}: nothing was sent (--dry-run)")
        return
    what = "published" if done.changed else "nothing has changed since"
    names = f", tag {done.tag}" if done.tag else ""
    names += f" (moved from {done.tag_moved_from})" if done.tag_moved_from else ""
    names += f", {done.pull_request}" if done.pull_request else ""
    typer.echo(f"{done.repo_id}: {what} commit {done.commit}{names}; {len(done.files)} files verified by sha256")


@app.command(
    epilog=_examples(
        "gode-zoo download gode_mnist_m4.modern --to runs/mnist", "gode-zoo download ORG/NAME@v1 --timeout 60"
    )
)
def download(
    name: Annotated[str, typer.Argument(help="arch, arch.tag, or ORG/NAME[@REVISION] on the Hub.")],
    to: Annotated[Path | None, typer.Option(help="Folder to copy it to; default the cache.")] = None,
    timeout: Timeout = 20.0,
) -> None:
    """Fetch weights with their card, check them, and print the folder."""
    from .download import download as fetch

    typer.echo(str(fetch(name, to, timeout=timeout)))


@hub_app.command("check", epilog=_examples("gode-zoo hub check", "gode-zoo hub check runs/mine"))
def hub_check(
    hub: Annotated[
        Path | None, typer.Argument(help="Folder of <arch>.<tag>/, or one of these; default hub/ of the checkout.")
    ] = None,
) -> None:
    """Check that every folder of hub/ may be published: files, hashes, model, figures, card."""
    from .hub_check import check_hub

    failed = False
    for folder, problems, unfinished in check_hub(hub):
        failed = failed or bool(problems)
        verdict = "a training under way, not checked" if unfinished else "not fit" if problems else "good"
        typer.echo(f"{folder.name}: {verdict}")
        for problem in problems:
            typer.echo(f"  {problem}")
    if failed:
        raise typer.Exit(1)


@app.command(
    epilog=_examples(
        "gode-zoo compress gode_cifar10_m8 --num-basis 4", "gode-zoo compress runs/mine --num-basis 2 --out runs/small"
    )
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


@app.command("choose-penalty", epilog=_examples("gode-zoo choose-penalty mine.yaml 0 1e-5 1e-4 --kind roughness"))
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


@app.command(epilog=_examples("gode-zoo benchmark --quick --out /tmp/benchmark", "gode-zoo benchmark --device cuda"))
def benchmark(
    model: Annotated[str, typer.Argument(help="A GODE model with Euler steps.")] = "gode_cifar10_m8",
    what: Annotated[str | None, typer.Option(help="Figures, with commas; default all.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda …")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("results"),
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats: to see that it works, not to report.")] = False,
) -> None:
    """Time and weigh a model beside every other way to run the same network; writes a CSV, tables and plots."""
    from .benchmark import hardware, run, write_report
    from .benchmark.report import targets

    names = None if what is None else [part.strip() for part in what.split(",")]
    rows = []
    for row in run(names, model, device=device, quick=quick):
        rows.append(row)
        parts = [f"{row.figure} {row.at:g}: {row.peer}"]
        parts += [] if row.seconds is None else [f"{1e3 * row.seconds:.2f} ms"]
        parts += [] if row.ratio is None else [f"ratio {row.ratio:.3f} ({row.ratio_low:.3f} - {row.ratio_high:.3f})"]
        parts += [] if row.bytes is None else [f"{row.bytes / 1e6:.1f} MB"]
        typer.echo(", ".join([*parts, row.note] if row.note else parts))
    table = Table("target", "measured", "", box=SIMPLE)
    for asked, value, met in targets(rows, device.partition(":")[0]):
        table.add_row(asked, value, "" if met is None else "[green]met[/]" if met else "[red]not met[/]")
    Console().print(table)
    typer.echo("\n".join(map(str, write_report(rows, out, hardware(device), device))))


@app.command(
    epilog=_examples(
        "gode-zoo export gode_mnist_m4 --format onnx --dynamic-batch",
        "gode-zoo export runs/mine --format torchscript --out mine.pt",
    )
)
def export(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, or the folder of a finished run.")],
    format: Annotated[str, typer.Option("--format", help="onnx, torchexport or torchscript.")],
    out: Annotated[Path | None, typer.Option(help="The file; default <arch>.<tag> with the format's ending.")] = None,
    bake: Annotated[bool, typer.Option(help="Fix the weights for the model's grid, or keep its splines.")] = True,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Take any number of images at once.")] = False,
    batch_size: Annotated[int | None, typer.Option(help="Images at once without --dynamic-batch; default 1.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise to int8 (onnx), with the accuracy that costs.")
    ] = False,
    images: Annotated[int | None, typer.Option(help="Test images to run back; default all.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a model to a file, run it back on test images, and exit with 1 where its accuracy is not the source's."""
    from .export import ExportError
    from .export import export as write

    try:
        result = write(
            model,
            format,
            out,
            bake=bake,
            dynamic_batch=dynamic_batch,
            batch_size=batch_size,
            int8=int8,
            images=images,
            data_dir=data_dir,
        )
    except ExportError as error:
        _error(str(error))
        raise typer.Exit(1) from None
    weights = "fixed weights" if result.baked else "weights as in the source"
    typer.echo(
        f"{result.path}: {result.path.stat().st_size:,} bytes, {weights}\n"
        f"largest difference of a logit: {result.largest_difference:.3g}\n"
        f"test error on {result.source.total:,} images: {result.exported.error:.2f} %, source {result.source.error:.2f} %"
    )


@app.command(
    epilog=_examples("gode-zoo sweep gode_mnist_m4", "gode-zoo sweep gode_mnist_m4 --solver euler,rk4 --steps 1,2,5")
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
) -> None:
    """Accuracy against cost for solvers and grids, and the cheapest setting within a loss."""
    from .sweep import cheapest, plot_sweep, write_csv
    from .sweep import sweep as measure

    try:
        numbers = [int(part) for part in steps.split(",")]
    except ValueError:
        raise ValueError(f"steps={steps!r}: must be whole numbers with commas between, such as 5,10,20") from None
    names = [part.strip() for part in solver.split(",")]
    if not max_loss >= 0:
        raise ValueError(f"max_loss={max_loss}: must be 0 or more points of accuracy")
    points = measure(model, solvers=names, steps=numbers, images=images, data_dir=data_dir, device=device)
    chosen = cheapest(points, max_loss)
    table = Table("solver", "steps", "NFE", "ms", "accuracy %", "loss", "")
    for p in points:
        note = "cheapest" if p is chosen else "published" if p.published else ""
        table.add_row(p.solver, str(p.steps), str(p.nfe), f"{p.ms:.2f}", f"{p.accuracy:.2f}", f"{p.loss:.2f}", note)
    Console().print(table)
    base = out or Path("results") / f"sweep_{Path(model).name}"
    base.parent.mkdir(parents=True, exist_ok=True)
    write_csv(points, base.with_name(base.name + ".csv"))
    picture = base.with_name(base.name + ".png")
    plot_sweep(points, chosen, model).savefig(picture)
    typer.echo(
        f"{base}.csv, .png. Cheapest within {max_loss} points: solver={chosen.solver!r}, num_steps={chosen.steps} "
        f"({chosen.nfe} calls, loses {chosen.loss:.2f})"
    )


if __name__ == "__main__":
    main()
