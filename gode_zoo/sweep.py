"""Anytime inference: a model's accuracy against what it costs, for solvers and grids chosen at load.

    points = sweep("gode_cifar10_m8", solvers=["euler", "rk4"], steps=[1, 2, 5, 10, 20])
    cheapest(points, max_loss=0.5)            # the fastest setting that loses at most half a point
    write_csv(points, path);  plot_sweep(points).savefig(path)

The weights stay as they are; solver and grid are keywords of the model. Accuracy is measured on test images, always the
same ones; milliseconds are those of one image at a time, the settings taking turns. The accuracy of a setting that was
chosen on these images is that of a chosen one: confirm it on others.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data.model_config import resolve_input_data_config
from torch import nn

from . import data as zoo_data
from .bake import with_blocks
from .evaluate import count_correct, load_published
from .ode_block import ODEBlock, solutions
from .run_folder import atomic_write
from .solvers import get_solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Point", "cheapest", "plot_sweep", "sweep", "write_csv"]

SOLVERS = ("euler", "midpoint", "rk4")
STEPS = (1, 2, 3, 5, 10, 20, 40)


@dataclass(frozen=True)
class Point:
    """One setting: what it costs and how right it is.

    Attributes:
        steps: of its fixed grid; for an adaptive solver those it took on one image. Of several stages those of one, the most.
        published: whether it is the setting that the weights were published with.
        nfe: calls of the vector fields that one image takes.
        ms: median milliseconds of one image.
        accuracy: in %.
        loss: points of accuracy below the published setting on the same images.
    """

    solver: str
    steps: int
    published: bool
    nfe: int
    ms: float
    correct: int
    total: int
    accuracy: float
    loss: float


def sweep(
    name: str,
    *,
    solvers: Sequence[str] = SOLVERS,
    steps: Sequence[int] = STEPS,
    images: int | None = 2000,
    repeats: int = 15,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
) -> list[Point]:
    """Measure a published model with every solver on every grid; its own setting comes first.

    Args:
        name: `arch`, `arch.tag`, or the folder of a finished run.
        solvers: fixed-grid ones are taken with each of `steps`, adaptive ones once, with their default tolerances.
        steps: numbers of steps.
        images: how many test images to classify, drawn at random but always the same; None takes all.
        repeats: timings of each setting, taking turns.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.

    Raises:
        ValueError: a number below 1, an unknown solver, none given, or a model without an ODE block.
        WeightsError, DataError: as `evaluate` does.
    """
    for what, values in (("steps", steps), ("repeats", [repeats]), ("images", [] if images is None else [images])):
        if any(value < 1 for value in values):
            raise ValueError(f"{what}={min(values)}: must be 1 or more")
    if not solvers or not steps:
        raise ValueError(f"solvers={list(solvers)}, steps={list(steps)}: give at least one of each")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    published, folder = load_published(name)
    blocks = [module for module in published.modules() if isinstance(module, ODEBlock)]
    if not blocks:
        raise ValueError(f"{name} has no ODE block whose solver could be changed: give a gode_* or odenet_* model")
    settings: list[dict[str, Any]] = []
    for solver in dict.fromkeys(solvers):
        grids = [{}] if get_solver(solver).adaptive else [{"num_steps": n} for n in dict.fromkeys(steps)]
        settings += [{"solver": solver, **grid} for grid in grids]
    own = [{"solver": block.solver, "num_steps": len(block.step_sizes)} for block in blocks if block.fixed]
    settings = [setting for setting in settings if own != [setting] * len(blocks)]  # that one is measured as published
    published.to(device)
    models = [published]
    for setting in settings:
        others: dict[nn.Module, nn.Module] = {
            block: ODEBlock(block.field, block.t_span, **setting).to(device) for block in blocks
        }
        models.append(with_blocks(published, others))

    inputs = resolve_input_data_config(model=published)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    test = zoo_data.load_dataset(
        metrics["dataset"],
        "test",
        data_dir=data_dir,
        input_size=tuple(inputs["input_size"]),
        num_classes=published.num_classes,  # type: ignore[arg-type]
    )
    test = test.sample(images).to(device)
    image = zoo_data.normalize(test.images[:1], inputs["mean"], inputs["std"])
    times = _take_turns(models, image, repeats)
    points: list[Point] = []
    solvers_of = [blocks[0].solver, *(setting["solver"] for setting in settings)]
    for model, solver, seconds in zip(models, solvers_of, times, strict=True):
        score = count_correct(model, test, inputs["mean"], inputs["std"])
        solved = solutions(model, image)
        accuracy = round(100 * score.correct / score.total, 4)
        loss = round(points[0].accuracy - accuracy, 4) if points else 0.0
        counts = (max(each.num_accepted for each in solved), not points, sum(each.nfe for each in solved))
        points.append(Point(solver, *counts, round(1e3 * seconds, 4), score.correct, score.total, accuracy, loss))
    return points


def _take_turns(models: Sequence[torch.nn.Module], image: torch.Tensor, repeats: int) -> list[float]:
    """Median seconds of one forward pass each; the first of each is not counted."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for n in range(repeats + 1):
            for model, taken in zip(models, times, strict=True):
                start = time.perf_counter()
                model(image)
                if image.device.type == "cuda":
                    torch.cuda.synchronize(image.device)
                if n > 0:
                    taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def cheapest(points: Sequence[Point], max_loss: float) -> Point:
    """The setting of the least NFE (of equals the most accurate) among those that lose at most `max_loss` points.

    NFE decides, as it does not depend on what else the machine was doing.

    Raises:
        ValueError: if max_loss is negative or not a number, or there is no point.
    """
    if not max_loss >= 0:
        raise ValueError(f"max_loss={max_loss}: must be 0 or more points of accuracy")
    if not points:
        raise ValueError("points is empty: measure with sweep first")
    return min((p for p in points if p.loss <= max_loss + 1e-9), key=lambda p: (p.nfe, p.loss))


def write_csv(points: Sequence[Point], path: Path) -> None:
    """One row a setting, with the names of `Point` as the head."""
    text = io.StringIO()
    names = [field.name for field in fields(Point)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(point, name) for name in names] for point in points)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def plot_sweep(points: Sequence[Point], chosen: Point | None = None, title: str = "") -> Figure:
    """Accuracy against NFE and against milliseconds: a curve for each solver, a ring round the chosen setting.

    Raises:
        ImportError: matplotlib is missing.
    """
    from .plots import new_figure

    figure = new_figure(9.0, 4.0)
    for ax, key, label in zip(
        figure.subplots(1, 2, sharey=True), ("nfe", "ms"), ("calls of the field (NFE)", "ms an image"), strict=True
    ):
        for solver in dict.fromkeys(point.solver for point in points):
            own = sorted((p for p in points if p.solver == solver), key=lambda p: p.nfe)
            ax.plot([getattr(p, key) for p in own], [p.accuracy for p in own], "o-", markersize=4, label=solver)
        published = next(p for p in points if p.published)
        ax.axhline(published.accuracy, color="grey", linewidth=0.5)
        for point, marker, name in ((published, "*", "published"), (chosen, "o", "chosen")):
            if point is not None:
                style = {"markersize": 13, "markerfacecolor": "none", "color": "black", "linestyle": "none"}
                ax.plot(getattr(point, key), point.accuracy, marker, label=name, **style)
        ax.set(xlabel=label, xscale="log")
    figure.axes[0].set_ylabel(f"accuracy on {points[0].total:,} images, %")
    figure.axes[1].legend(fontsize="small")
    figure.suptitle(title)
    return figure
