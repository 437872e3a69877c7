"""Compression of a published model, measured: its error before, with fewer basis functions, and after a short fine-tune.

    result = compress_published("gode_cifar10_m8", num_basis=4, steps=200)
    result.before.error, result.after.error, result.finetuned.error

The smaller model is `surgery.compress`'s: the nearest weights in L2, without training. The fine-tune goes over the training
set in random order with the crops, flips, rotations and label smoothing of the model's recipe, by SGD with a learning rate
that falls linearly to 0. The test set is only measured on; nothing is selected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.model_config import resolve_input_data_config
from torch import nn
from torch.nn import functional as F

from . import data as zoo_data
from .augmentation import move
from .evaluate import Score, count_correct, load_published
from .provenance import source_revision
from .recipes import Recipe, load_recipe
from .run_folder import atomic_write, refuse_used_folder, save_weights
from .surgery import compress

__all__ = ["CompressResult", "compress_published"]


@dataclasses.dataclass(frozen=True)
class CompressResult:
    """What a compression came to.

    `before`, `after` and `finetuned` (None without fine-tuning) are scores on the test set; `parameters` counts those of the
    model before and after.
    """

    name: str
    dataset: str
    parameters: tuple[int, int]
    before: Score
    after: Score
    finetuned: Score | None
    model: nn.Module


def compress_published(
    name: str,
    num_basis: int,
    *,
    degree: int | None = None,
    knots: str | Sequence[float] | None = None,
    steps: int = 200,
    lr: float = 0.01,
    out_dir: str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 128,
) -> CompressResult:
    """Compress a published model and measure what it costs.

    Args:
        name: `arch`, `arch.tag` or the folder of a finished run, with recipe.yaml.
        num_basis: basis functions to keep; also `degree` and `knots` as `surgery.compress` takes them.
        steps: updates of the fine-tune; 0 for none.
        lr: its first learning rate.
        out_dir: where the smaller model is written in timm's Hub format, with metrics.json; nowhere where None.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.
        batch_size: images of an update.

    Raises:
        ValueError: a basis that cannot be, or a setting outside its limits.
        WeightsError: no such weights. CheckpointError: `out_dir` already holds a run. DataError: no such dataset.
        RuntimeError: the loss of the fine-tune became NaN or infinite.
    """
    if steps < 0 or batch_size < 1 or not lr > 0:
        raise ValueError(f"steps={steps}, lr={lr}, batch_size={batch_size}: must be at least 0, above 0 and at least 1")
    out = Path(out_dir) if out_dir is not None else None
    if out is not None:
        refuse_used_folder(out)
    started = time.monotonic()
    model, folder = load_published(name)
    smaller = compress(model, num_basis, degree, knots)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    recipe = load_recipe(folder / "recipe.yaml")
    inputs = resolve_input_data_config(model=model)
    mean, std = inputs["mean"], inputs["std"]
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def load(split: str) -> zoo_data.ImageData:
        size, classes = tuple(inputs["input_size"]), int(model.num_classes)  # type: ignore[arg-type]
        data = zoo_data.load_dataset(metrics["dataset"], split, data_dir=data_dir, input_size=size, num_classes=classes)
        return data.to(device)

    test_data = load("test")
    before = count_correct(model.to(device), test_data, mean, std)
    after = count_correct(smaller.to(device), test_data, mean, std)
    finetuned = None
    if steps:
        _finetune(smaller, load("train"), recipe, mean, std, steps, lr, batch_size)
        finetuned = count_correct(smaller, test_data, mean, std)
    result = CompressResult(
        f"{metrics['model']}.{metrics['tag']}",
        metrics["dataset"],
        (_count(model), _count(smaller)),
        before,
        after,
        finetuned,
        smaller,
    )
    if out is not None:
        _write(out, result, metrics, recipe, test_data.classes, steps, lr, batch_size, time.monotonic() - started)
    return result


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _finetune(
    model: nn.Module,
    data: zoo_data.ImageData,
    recipe: Recipe,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps: int,
    lr: float,
    batch_size: int,
) -> None:
    generator = torch.Generator(data.images.device).manual_seed(recipe.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=recipe.optimizer.momentum, nesterov=recipe.optimizer.nesterov
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    step = 0
    while step < steps:
        for images, labels in zoo_data.batches(data, batch_size, shuffle=True, drop_last=False, generator=generator):
            logits = model(zoo_data.normalize(move(images, recipe.augment, generator), mean, std))
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            if not torch.isfinite(loss):
                raise RuntimeError(f"the loss is NaN or infinite at step {step + 1} of the fine-tune: lower lr={lr}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step == steps:
                break
    model.eval()


def _write(
    out: Path,
    result: CompressResult,
    source: dict[str, Any],
    recipe: Recipe,
    classes: tuple[str, ...],
    steps: int,
    lr: float,
    batch_size: int,
    seconds: float,
) -> None:
    """The smaller model as a Hub folder; metrics.json last, so that a folder with it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    model = result.model.cpu()
    save_weights(out, model, dataclasses.replace(recipe, tag="compressed"), classes)
    last = result.finetuned or result.after
    metrics = {
        **{key: source[key] for key in ("model", "dataset", "split", "solver")},
        "tag": "compressed",
        "parameters": result.parameters[1],
        "last": {"epoch": None, **_score(last)},
        "best": None,
        "best_reason": "compressed, then fine-tuned for a fixed number of updates: nothing was selected",
        "compressed_from": {"name": result.name, "sha256": source["sha256"], "parameters": result.parameters[0]},
        "before": _score(result.before),
        "after": _score(result.after),
        "finetune": {"steps": steps, "lr": lr, "batch_size": batch_size, "seed": recipe.seed} if steps else None,
        "model_args": {key: model._model_args[key] for key in ("num_basis", "degree", "knots")},  # type: ignore[index]
        "sha256": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "wall_clock_seconds": round(seconds, 1),
        "git": source_revision(),
    }
    atomic_write(out / "metrics.json", lambda file: file.write((json.dumps(metrics, indent=2) + "\n").encode()))


def _score(score: Score) -> dict[str, Any]:
    return {"error": score.error, "correct": score.correct, "total": score.total}
