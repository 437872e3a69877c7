"""Verbs that use a model that is there: list, predict, evaluate, export."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._shared import DataDir, Device, Json, app, examples, print_coverage, print_error, print_json

PANEL = "Use a model"  # of the help


@app.command(
    "list",
    rich_help_panel=PANEL,
    epilog=examples("gode-zoo list", "gode-zoo list --json"),
)
def list_models(as_json: Json = False) -> None:
    """List the models, and the error of those that have weights."""
    from ..listing import list_zoo

    if as_json:
        return print_json([m._asdict() for m in list_zoo()])
    table = Table("model", "weights", "parameters", "dataset", "test error %")
    for m in list_zoo():
        error = m.outcome or ("-" if m.error is None else f"{m.error:.2f}")
        table.add_row(m.arch, m.tag or "-", f"{m.num_parameters:,}", m.dataset or "-", error)
    Console().print(table)


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo predict gode_mnist_m4 digit.png",
        "gode-zoo predict runs/photos.finetuned photos/new/ 'more/**/*.jpg' --csv > predicted.csv",
        "gode-zoo predict runs/photos.finetuned photos/new/ --topk 1 --json",
    ),
)
def predict(
    model: Annotated[str, typer.Argument(help="arch, arch.tag, hf-hub:ORG/NAME, or a run's folder.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders, and patterns in quotes.")],
    topk: Annotated[int | None, typer.Option(help="Classes to show of each image; default 3.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: path, rank, class, probability; or path, mean, low, high.")
    ] = False,
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Classify images, or predict their outcomes. What cannot be read is listed at the end; the exit code is then 1."""
    from ..predict import OutcomePrediction, find_files
    from ..predict import predict as classify
    from ..run_display import counting

    if as_csv and as_json:
        raise ValueError("--csv and --json: give one of the two")
    files = find_files(images)
    done = []
    with counting(True, "Classifying", len(files)) as show:
        for prediction in classify(model, files, topk, batch_size=batch_size, device=device):
            done.append(prediction if topk else dataclasses.replace(prediction, classes=prediction.classes[:3]))
            show(len(done))
    read, failed = [p for p in done if not p.problem], [p for p in done if p.problem]
    if done and isinstance(done[0], OutcomePrediction):
        _print_outcomes(done, as_json, as_csv)
    elif as_json:
        print_json(done)
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
        print_error(f"{p.path}: {p.problem}")
    if failed:
        print_error(f"{len(failed):,} of {len(done):,} files could not be read")
        raise typer.Exit(1)


def _print_outcomes(done: list[Any], as_json: bool, as_csv: bool) -> None:
    from ..predict import LEVEL

    read = [p for p in done if not p.problem]
    if as_json:
        print_json([{key: getattr(p, key) for key in ("path", "mean", "interval", "problem")} for p in done])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "mean", "low", "high"])
        writer.writerows([p.path, *(f"{value:.6g}" for value in (p.mean, *p.interval))] for p in read)
    elif read:
        table = Table("image", "mean", f"{100 * LEVEL:g} % interval")
        for p in read:
            table.add_row(escape(str(p.path)), f"{p.mean:.4g}", f"{p.interval[0]:.4g} to {p.interval[1]:.4g}")
        Console().print(table)


@app.command(
    rich_help_panel=PANEL,
    epilog=examples("gode-zoo evaluate gode_mnist_m4 --check", "gode-zoo evaluate --all --data-dir ~/data --json"),
)
def evaluate(
    model: Annotated[
        list[str] | None, typer.Argument(help="arch, arch.tag, hf-hub:ORG/NAME, or a run's folder.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every model that has weights.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where an error is not the one reported.")] = False,
    mirror: Annotated[
        bool, typer.Option("--mirror", help="With test-time augmentation: mean logits of image and mirror image.")
    ] = False,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure the test error anew and print it beside the one reported."""
    from ..evaluate import TOLERANCE
    from ..evaluate import evaluate as measure
    from ..models._pretrained import list_weights

    if bool(model) == every:
        raise ValueError("give the models to evaluate, or --all (one of the two)")
    names = model or []
    if every:
        names = [
            f"{arch}.{tag}"
            for arch, tag, folder in list_weights()
            if not mirror or "mirrored" in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        ]
    if not names:
        raise ValueError("no weights are bundled: nothing to evaluate")
    results = [measure(name, data_dir=data_dir, device=device, mirror=mirror) for name in names]
    if as_json:
        print_json([dataclasses.asdict(r) | {"agrees": r.agrees} for r in results])
    else:
        _print_evaluations(results)
    if check and not all(r.agrees for r in results):
        print_error(f"a measured error is more than {TOLERANCE} points from the reported one")
        raise typer.Exit(1)


def _print_evaluations(results: list[Any]) -> None:
    from ..outcomes import OutcomeScore

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
        digits = 4 if isinstance(r.measured, OutcomeScore) else 2
        errors = (f"{r.reported.error:.{digits}f}", f"{r.measured.error:.{digits}f}")
        table.add_row(r.name, r.dataset, f"{r.measured.total:,}", *errors, verdict)
    Console().print(table)
    for r in (r for r in results if isinstance(r.measured, OutcomeScore)):
        typer.echo(f"{r.name}: {r.measured}. Predictive intervals, held-out outcomes inside:")
        print_coverage(r.coverage)


@app.command(
    rich_help_panel=PANEL,
    epilog=examples(
        "gode-zoo export gode_mnist_m4 --format onnx --dynamic-batch",
        "gode-zoo export runs/mine --format torchscript --out mine.pt",
    ),
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
    as_json: Json = False,
) -> None:
    """Write a model to a file, run it back on test images, and exit with 1 where its accuracy is not the source's."""
    from ..export import ExportError
    from ..export import export as write

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
        print_error(str(error))
        raise typer.Exit(1) from None
    if as_json:
        return print_json(result)
    weights = "fixed weights" if result.baked else "weights as in the source"
    typer.echo(
        f"{result.path}: {result.path.stat().st_size:,} bytes, {weights}\n"
        f"largest difference of a logit: {result.largest_difference:.3g}\n"
        f"test error on {result.source.total:,} images: {result.exported.error:.2f} %, source {result.source.error:.2f} %"
    )
