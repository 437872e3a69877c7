"""The factor λ of a penalty, chosen on images held out of the training set.

    choice = choose_penalty(load_recipe("mine.yaml"), "roughness", [1e-6, 1e-5, 1e-4], "runs/roughness")
    choice.best.factor, choice.best.val_error

Each factor is one run of the recipe in a folder of its own, `<kind>-<λ>`, which can be resumed as any run. The error on the
held-out split after the last epoch decides; of equals the larger factor, the smoother weights. No test error is looked at.
Into the folder go `penalty.csv` (one row a factor) and, where matplotlib is there, `kernels.png`: one kernel of each run
over t (`plots.plot_kernel`), the same one throughout.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from .penalties import SplinePenalty
from .recipes import Recipe
from .run_folder import atomic_write
from .train import train

__all__ = ["Choice", "Trial", "choose_penalty"]

_logger = logging.getLogger(__name__)
KINDS = ("roughness", "difference", "ridge")


@dataclass(frozen=True)
class Trial:
    """One factor: the error on the held-out split in %, and the penalty of the trained weights without its factor."""

    factor: float
    val_error: float
    penalty: float
    folder: Path


@dataclass(frozen=True)
class Choice:
    """Every factor that was tried, in rising order, and the best."""

    trials: tuple[Trial, ...]
    best: Trial


def choose_penalty(
    recipe: Recipe,
    kind: str,
    factors: Sequence[float],
    out_dir: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Choice:
    """Train once for each factor and choose by the held-out split.

    Args:
        recipe: with `holdout`; its own factor of `kind` is replaced, and other penalties stay.
        kind: "roughness", "difference" or "ridge".
        factors: at least two different ones; 0 is none.
        out_dir: a new folder, or one of the same call that was interrupted: finished runs in it are not trained again.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.
        progress: show progress bars, where stderr is a terminal.

    Raises:
        ValueError: a kind or factor that cannot be, or a recipe without `holdout`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(KINDS)}")
    if len(set(factors)) < 2 or not all(0 <= factor < float("inf") for factor in factors):
        raise ValueError(
            f"factors={list(factors)}: need at least two different ones, each 0 or more, such as 0 1e-5 1e-4"
        )
    if not recipe.holdout:
        raise ValueError(
            f"recipe {recipe.name}: holdout = 0.0 keeps no images aside to choose by: set holdout, such as 0.1"
        )
    out = Path(out_dir)
    order: dict[str, Any] = {f"{kind}_order": getattr(recipe.penalty, f"{kind}_order")} if kind != "ridge" else {}
    trials = []
    for factor in sorted(set(factors)):
        changed: dict[str, Any] = {kind: factor}
        penalty = dataclasses.replace(recipe.penalty, **changed)
        folder = out / f"{kind}-{factor:g}"
        result = train(
            dataclasses.replace(recipe, penalty=penalty),
            folder,
            data_dir=data_dir,
            device=device,
            resume=(folder / "checkpoint.pt").exists(),
            progress=progress,
        )
        model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
        with torch.no_grad():
            size = SplinePenalty(model, **{**order, kind: 1.0})().item()
        trials.append(Trial(factor, result.history[-1]["val_error"], size, folder))
        _logger.info("%s %g: held-out error %.2f %%, %s %.4g", kind, factor, trials[-1].val_error, kind, size)
    best = min(reversed(trials), key=lambda trial: trial.val_error)
    _write_table(out / "penalty.csv", trials, best)
    _plot(out / "kernels.png", kind, trials)
    return Choice(tuple(trials), best)


def _write_table(path: Path, trials: list[Trial], best: Trial) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["factor", "val_error", "penalty", "chosen"])
    for trial in trials:
        writer.writerow([f"{trial.factor:g}", f"{trial.val_error:.4f}", f"{trial.penalty:.6g}", int(trial is best)])
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def _plot(path: Path, kind: str, trials: list[Trial]) -> None:
    """The kernel that is largest without (or with the least) penalty, of every run."""
    from .layers import SplineConv2d
    from .plots import new_figure, plot_kernel

    models = [timm.create_model(f"local-dir:{trial.folder.resolve()}", pretrained=True) for trial in trials]
    conv = next((module for module in models[0].modules() if isinstance(module, SplineConv2d)), None)
    if conv is None:  # a model of dense layers has no kernel to draw
        return
    out_channel, in_channel = divmod(int(conv.coeffs.detach().flatten(2).norm(dim=2).argmax()), conv.coeffs.shape[1])
    try:
        figure = new_figure(6.4, 3.2 * len(trials))
    except ImportError as error:
        _logger.info("no plot: %s", error)
        return
    for trial, model, part in zip(trials, models, figure.subfigures(len(trials), squeeze=False).flat, strict=True):
        plot_kernel(model, 0, out_channel, in_channel, figure=part)
        part.suptitle(f"{kind} {trial.factor:g}: held-out error {trial.val_error:.2f} %")
    figure.savefig(path)
