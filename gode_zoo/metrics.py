"""metrics.json: the errors of a run's published weights, and everything that says how they were obtained."""

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import normalize
from .evaluate import Score
from .families import Categorical
from .ode_block import ODEBlock, solutions
from .outcomes import OutcomeScore
from .provenance import hardware, versions
from .recipes import Recipe
from .run_folder import atomic_write, recipe_sha256
from .run_state import RunState

__all__ = ["best_epoch", "function_evaluations", "mean_and_spread", "solving", "write_metrics"]

_NFE_IMAGES = 128


def write_metrics(
    out: Path,
    model: nn.Module,
    recipe: Recipe,
    run: RunState,
    last: Score | OutcomeScore,
    best: tuple[dict[str, Any] | None, str | None],
    changes: dict[str, Any] | None = None,
) -> None:
    """Write metrics.json: the errors, and everything that says how they were obtained.

    Args:
        run: the finished training: its wall-clock time over all its resumptions, and what code and machines it ran on.
        last: score of the published weights on the test set.
        best: as `best_epoch` gives it: the best epoch, and where there is none, why.
        changes: further keys, and values in place of those here, for a run that was not training from a recipe.
    """
    metrics: dict[str, Any] = {
        "model": recipe.model,
        "tag": recipe.tag,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dataset": recipe.dataset,
        "split": "test",
        "last": {"epoch": recipe.epochs, **last.to_dict()},
        "best": best[0],
        "best_reason": best[1],
        "seeds": [recipe.seed],
        "num_seeds": 1,
        "model_args": recipe.model_args,
        "solver": solving(model),
        "epochs": recipe.epochs,
        "ema": recipe.ema_decay is not None,
        "wall_clock_seconds": round(run.seconds, 1),
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "recipe_sha256": recipe_sha256(recipe),
        "git": run.sources[0]["git"],
        "resumed_with": run.sources[1:],
        "hardware": run.sources[0].get("hardware") or hardware(run.device),  # older checkpoints do not say
        "versions": versions(),
    }
    family = getattr(model, "family", None)
    if family is not None and not isinstance(family, Categorical):
        metrics["family"] = family.to_dict()
    metrics |= changes or {}
    atomic_write(out / "metrics.json", lambda file: file.write((json.dumps(metrics, indent=2) + "\n").encode()))


def best_epoch(history: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, str | None]:
    """The best epoch and on what grounds, or None and why there is none. Of equals the earliest."""
    if "val_error" in history[-1]:
        row = min(history, key=lambda row: row["val_error"])
        best = {
            "epoch": row["epoch"],
            "val_error": row["val_error"],
            "selected_by": "held-out split of the training set",
        }
        if "test_error" in row:
            best |= _test_part(row)
        return best, None
    if all("test_error" in row for row in history):
        row = min(history, key=lambda row: row["test_error"])
        return {
            "epoch": row["epoch"],
            **_test_part(row),
            "selected_by": "test set: information only, these weights are not the published ones",
        }, None
    return None, "neither a held-out split nor the per-epoch test error was asked for by the recipe"


def _test_part(row: dict[str, Any]) -> dict[str, Any]:
    """The test set's figures of a row, as metrics.json names them."""
    return {key.removeprefix("test_"): value for key, value in row.items() if key.startswith("test_")}


def mean_and_spread(errors: Sequence[float]) -> str:
    """Mean ± standard deviation of the errors of several seeds, with two decimals; of one its error alone."""
    mean = f"{statistics.fmean(errors):.2f}"
    return f"{mean} ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else mean


def function_evaluations(
    model: nn.Module, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> int | None:
    """NFE of the model's ODE blocks together, in evaluation mode, on the first 128 of uint8 images `(N, C, H, W)`.

    None where the model has no such block. An adaptive solver takes the steps that the images and the weights ask for.
    """
    first = images[:_NFE_IMAGES].to(next(model.parameters()).device)
    with torch.no_grad():
        solved = solutions(model.eval(), normalize(first, mean, std))
    return sum(solution.nfe for solution in solved) if solved else None


def solving(model: nn.Module) -> dict[str, Any] | None:
    """Solver and grid of the model's ODE blocks, which differ in their number of steps at most; None where it has none."""
    blocks = [block for block in model.modules() if isinstance(block, ODEBlock)]
    if not blocks:
        return None
    block = blocks[0]
    how: dict[str, Any] = {
        "solver": block.solver,
        "t_span": list(block.t_span),
        "sensitivity": block.sensitivity,
    }
    if len(blocks) > 1:
        how["stages"] = len(blocks)
    if not block.fixed:
        return how | {"rtol": block.rtol, "atol": block.atol}
    steps = [len(each.step_sizes) for each in blocks]
    if len(set(steps)) > 1:
        return how | {"num_steps": steps}
    return how | {"num_steps": steps[0], "step_size": round(max(block.step_sizes), 12)}
