"""The paper's tables again: trains or loads what a table needs, and puts ours beside the paper's figures.

    results = list(reproduce("table1", seeds=3))
    write_table("table1", results, "results")
    figure2_runs()      # the folders that `figure2.plot_figure2` draws

Each row of a table is a model with the recipe `<model>.paper`, once a seed; a row that stands in two tables is one run.
Runs lie in `runs/<row>.<tag>/seed<n>` and can be stopped and resumed; a finished one is never run again. With fewer
epochs than the paper's 160 the milestones of the learning rate move in proportion; the tag and every output say how
many, and likewise that a run was in bfloat16. `write_table` leaves `<table>.csv` and `<table>.md`.

Source of the figures: paper.py.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from .data import load_dataset
from .metrics import function_evaluations, mean_and_spread
from .models._pretrained import list_weights
from .ordering import orderings
from .paper import EPOCHS, TABLES, PaperRow
from .provenance import hardware_text
from .recipes import Recipe, load_recipe
from .run_folder import atomic_write, recipe_sha256
from .side_by_side import train_side_by_side
from .train import train

__all__ = ["RowResult", "figure2_runs", "reproduce", "row_recipe", "table_cells", "title", "write_table"]


@dataclass(frozen=True)
class RowResult:
    """Ours beside the paper's for one row.

    Attributes:
        row: the paper's.
        parameters: of the model.
        epochs: of each run.
        amp: of each run: `"none"` or `"bf16"`.
        errors: test error in % of each finished seed, last epoch.
        images: that they were measured on; 0 before there is a finished run.
        state: `"3 of 3 seeds"`, or how far the runs are.
        step_seconds: median over the epochs of the first finished run, None before there is one.
        nfe: function evaluations of one solve by the first finished run's weights; None without a run or a solver.
        commits: that trained the finished runs.
        hardware: that the finished runs were begun on.
    """

    row: PaperRow
    parameters: int
    epochs: int
    amp: str
    errors: tuple[float, ...]
    images: int
    state: str
    step_seconds: float | None
    nfe: int | None
    commits: tuple[str, ...]
    hardware: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """Mean error in % over the finished seeds."""
        return statistics.fmean(self.errors) if self.errors else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds; None below two."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None


def row_recipe(row: PaperRow, seed: int = 0, epochs: int = EPOCHS, amp: str = "none") -> Recipe:
    """The paper's recipe for one row.

    Raises:
        ValueError: epochs outside 1 … 160, or an `amp` that recipes do not have.
    """
    if not 1 <= epochs <= EPOCHS:
        raise ValueError(f"epochs={epochs}: must be 1 to {EPOCHS}, the paper's")
    if amp not in ("none", "bf16"):
        raise ValueError(f"amp={amp!r}: must be none or bf16")
    recipe = load_recipe(f"{row.model}.paper")
    milestones = tuple(milestone * epochs / EPOCHS for milestone in recipe.schedule.milestones)
    return dataclasses.replace(
        recipe,
        seed=seed,
        epochs=epochs,
        tag=_tag(epochs, amp),
        amp=amp,
        schedule=dataclasses.replace(recipe.schedule, milestones=milestones),
        model_args={key: list(v) if isinstance(v, tuple) else v for key, v in row.model_args.items()},
    )


def reproduce(
    table: str,
    *,
    seeds: int = 1,
    epochs: int = EPOCHS,
    amp: str = "none",
    runs: str | Path = "runs/reproduce",
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    run_missing: bool = True,
    jobs: int = 1,
    progress: bool = True,
) -> Iterator[RowResult]:
    """Yield the table's rows in turn, each when its runs are finished.

    Args:
        table: `"table1"` … `"table4"`.
        seeds: runs a row, with seeds 0 … seeds − 1.
        epochs: of each run; the paper's 160, or fewer.
        amp: `"none"`, the paper's float32, or `"bf16"`, for less time.
        runs: folder of the runs.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.
        resume: go on with runs that were interrupted; without it they are an error, as in training.
        run_missing: train what is missing; False yields every row as it stands.
        jobs: above 1, so many runs are trained at a time, all of the table before its first row is yielded.
        progress: show a progress bar for each run, where stderr is a terminal.

    Raises:
        ValueError: an unknown table, or seeds or epochs that cannot be.
        CheckpointError: a run was interrupted and `resume` is False, or is of another recipe.
        TrainingInterrupted: Ctrl-C or SIGTERM; the run in progress was saved.
        SideBySideError: one of several runs at a time failed.
    """
    rows = _rows(table)
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be 1 or more")
    recipes = [[row_recipe(row, seed, epochs, amp) for seed in range(seeds)] for row in rows]
    if run_missing and jobs != 1:
        missing = {
            _folder(Path(runs), row, recipe): recipe
            for row, wanted in zip(rows, recipes, strict=True)
            for recipe in wanted
        }
        missing = {folder: recipe for folder, recipe in missing.items() if _metrics(folder, recipe) is None}
        pairs = [(recipe, folder) for folder, recipe in missing.items()]
        train_side_by_side(pairs, jobs, data_dir=data_dir, device=device, resume=resume, progress=progress)
    for row, wanted in zip(rows, recipes, strict=True):
        folders = [_folder(Path(runs), row, recipe) for recipe in wanted]
        if run_missing:
            for recipe, folder in zip(wanted, folders, strict=True):
                _finish(recipe, folder, data_dir=data_dir, device=device, resume=resume, progress=progress)
        yield _result(row, wanted, folders, data_dir)


def write_table(table: str, results: Sequence[RowResult], out: str | Path) -> tuple[Path, Path]:
    """Write `<out>/<table>.csv` and `.md`, each whole or not at all; returns both paths.

    Raises:
        ValueError: the folder has this table with more finished runs: they would be lost.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    finished, there = sum(len(result.errors) for result in results), _finished(folder / f"{table}.csv")
    if finished < there:
        raise ValueError(
            f"{folder / table}.csv has {there} finished runs, these are {finished}: bring the folder of those runs (--runs), "
            "or write elsewhere (--out)"
        )
    lines = [_csv_row(result) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    head, cells = table_cells(results)
    markdown = [f"# {title(table, results)}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    markdown += ["| " + " | ".join(row) + " |" for row in cells]
    markdown += ["", *_footnotes(results), ""]
    markdown += [f"- {line}" for line in orderings(results)] + [""]
    paths = folder / f"{table}.csv", folder / f"{table}.md"
    for path, content in zip(paths, (text.getvalue(), "\n".join(markdown).rstrip() + "\n"), strict=True):
        atomic_write(path, _writing(content))
    return paths


def figure2_runs(
    *,
    epochs: int = EPOCHS,
    amp: str = "none",
    runs: str | Path = "runs/reproduce",
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    run_missing: bool = True,
    progress: bool = True,
) -> dict[str, Path]:
    """The finished CIFAR-10 runs (seed 0) of Table 1 by the paper's names; trained where missing, as by `reproduce`.

    Raises:
        FileNotFoundError: `run_missing` is False and none is finished.
    """
    found = {}
    for row in TABLES["table1"]:
        if row.labels["data"] == "CIFAR-10":
            recipe = row_recipe(row, 0, epochs, amp)
            folder = _folder(Path(runs), row, recipe)
            if run_missing:
                _finish(recipe, folder, data_dir=data_dir, device=device, resume=resume, progress=progress)
            if _metrics(folder, recipe) is not None:
                found[row.labels["model"]] = folder
    if not found:
        raise FileNotFoundError(
            f"no finished run of {epochs} epochs under {runs}: leave --no-run out, and it is trained"
        )
    return found


def title(table: str, results: Sequence[RowResult]) -> str:
    """The table's heading, which says where its runs were shorter than the paper's."""
    number, epochs = table.removeprefix("table"), results[0].epochs
    precision = ", in bfloat16" if results[0].amp == "bf16" else ""
    if epochs == EPOCHS:
        return f"Table {number} of the paper: test error in %, {EPOCHS} epochs{precision}"
    short = f"with {epochs} of its {EPOCHS} epochs{precision}"
    return f"Table {number} of the paper, {short}: test error in %, not comparable with it"


def table_cells(results: Sequence[RowResult]) -> tuple[list[str], list[list[str]]]:
    """Column heads and text cells, for Markdown and for the terminal."""
    solvers = ["NFE"] if "solver" in results[0].row.labels else []
    head = [*results[0].row.labels, "paper", "ours", "diff.", "M param.", *solvers, "s/step", "V100", "state"]
    return head, [_cells(result) for result in results]


# ---------------------------------------------------------------------------------------------------------------------


def _rows(table: str) -> tuple[PaperRow, ...]:
    if table not in TABLES:
        raise ValueError(f"table={table!r}: must be one of {', '.join(TABLES)}")
    return TABLES[table]


def _tag(epochs: int, amp: str) -> str:
    return "paper" + (f"-{epochs}-epochs" if epochs != EPOCHS else "") + ("-bf16" if amp == "bf16" else "")


def _folder(runs: Path, row: PaperRow, recipe: Recipe) -> Path:
    """Where a row's run is or will be: among the bundled weights, if they are of this very recipe, else under `runs`."""
    for arch, tag, folder in list_weights():
        if (arch, tag) == (row.model, recipe.tag) and _metrics(folder, recipe) is not None:
            return folder
    return runs / f"{row.run_name}.{recipe.tag}" / f"seed{recipe.seed}"


def _metrics(folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """metrics.json of a finished run of this recipe; None where there is none (another recipe's is refused later)."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return metrics if metrics.get("recipe_sha256") == recipe_sha256(recipe) else None


def _result(row: PaperRow, recipes: Sequence[Recipe], folders: Sequence[Path], data_dir: Any) -> RowResult:
    epochs = recipes[0].epochs
    found = [_metrics(folder, recipe) for folder, recipe in zip(folders, recipes, strict=True)]
    finished = [(folder, metrics) for folder, metrics in zip(folders, found, strict=True) if metrics is not None]
    parameters = timm.create_model(row.model, device="meta", **row.model_args).parameters()
    state = f"{len(finished)} of {len(folders)} seed{'s' if len(folders) > 1 else ''}"
    under_way = [
        f"seed {recipe.seed}: epoch {len(log)} of {epochs}"
        for recipe, folder, metrics in zip(recipes, folders, found, strict=True)
        if metrics is None and (log := _log(folder))
    ]
    return RowResult(
        row,
        sum(p.numel() for p in parameters),
        epochs,
        recipes[0].amp,
        tuple(metrics["last"]["error"] for _, metrics in finished),
        finished[0][1]["last"]["total"] if finished else 0,
        "; ".join([state, *under_way]) if finished or under_way else "not run",
        statistics.median(float(line["step_seconds"]) for line in _log(finished[0][0])) if finished else None,
        _nfe(*finished[0], data_dir) if finished else None,
        tuple(sorted({metrics["git"]["commit"] for _, metrics in finished if metrics["git"]})),
        tuple(sorted({hardware_text(metrics["hardware"]) for _, metrics in finished})),
    )


def _finish(recipe: Recipe, folder: Path, *, resume: bool, **options: Any) -> None:
    """Train what is not finished; a checkpoint is gone on with only if `resume`."""
    if _metrics(folder, recipe) is None:
        train(recipe, folder, resume=resume and (folder / "checkpoint.pt").exists(), **options)


def _log(folder: Path) -> list[dict[str, str]]:
    try:
        with (folder / "train_log.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def _nfe(folder: Path, metrics: dict[str, Any], data_dir: Any) -> int | None:
    """What the run wrote down; counted again for older runs, which wrote none, unless they are a log alone."""
    if "nfe" in metrics or not (folder / "model.safetensors").is_file():
        return metrics.get("nfe")
    model: Any = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    cfg = model.pretrained_cfg
    size = tuple(cfg["input_size"])
    images = load_dataset(metrics["dataset"], "test", data_dir=data_dir, input_size=size).images
    return function_evaluations(model, images, cfg["mean"], cfg["std"])


def _cells(result: RowResult) -> list[str]:
    row, mean = result.row, result.mean
    ours = mean_and_spread(result.errors) if result.errors else ""
    return [
        *row.labels.values(),
        f"{row.error:.2f}",
        ours,
        "" if mean is None else f"{mean - row.error:+.2f}",
        f"{result.parameters / 1e6:.2f}",
        *(["" if result.nfe is None else str(result.nfe)] if "solver" in row.labels else []),
        "" if result.step_seconds is None else f"{result.step_seconds:.3g}",
        f"{row.seconds:g}",
        result.state,
    ]


def _csv_row(result: RowResult) -> dict[str, Any]:
    return {
        **result.row.labels,
        "timm_model": result.row.model,
        "model_args": json.dumps(result.row.model_args, sort_keys=True),
        "parameters": result.parameters,
        "paper_error": result.row.error,
        "error_mean": "" if result.mean is None else round(result.mean, 4),
        "error_sd": "" if result.sd is None else round(result.sd, 4),
        "errors": " ".join(f"{error:g}" for error in result.errors),
        "epochs": result.epochs,
        "paper_epochs": EPOCHS,
        "amp": result.amp,
        "nfe": "" if result.nfe is None else result.nfe,
        "step_seconds": "" if result.step_seconds is None else f"{result.step_seconds:.4g}",
        "paper_step_seconds": result.row.seconds,
        "state": result.state,
        "commits": " ".join(result.commits),
        "hardware": "; ".join(result.hardware),
    }


def _footnotes(results: Sequence[RowResult]) -> list[str]:
    """What the figures are, and what they were obtained with."""
    hardware = sorted({name for result in results for name in result.hardware})
    commits = sorted({commit[:12] for result in results for commit in result.commits})
    lines = [
        "Error after the last epoch, mean ± standard deviation over the seeds; the paper's is of one run. s/step: seconds a",
        f"training step, ours on {'; '.join(hardware) or '(nothing was run)'}; V100: the paper's. "
        f"Commits: {', '.join(commits) or 'none'}.",
    ]
    if len(hardware) > 1:
        lines.append(
            "Seconds can be compared between rows of the same machine alone: the CSV names the machine of each."
        )
    return lines


def _finished(path: Path) -> int:
    """How many finished runs a table that was written before has."""
    if not path.is_file():
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        return sum(len(line["errors"].split()) for line in csv.DictReader(file))


def _writing(content: str) -> Callable[[Any], object]:
    return lambda file: file.write(content.encode())
