"""Evaluation: a model's error on its test set, beside the figure published with its weights.

result = evaluate("gode_mnist_m4")
result.measured.error, result.reported.error, result.agrees
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from torch import nn

from . import data as zoo_data
from .calibration import Coverage, calibrate
from .families import Categorical, get_family
from .hugging_face.download import download
from .models._pretrained import WeightsError, find_weights, verify_weights
from .outcomes import OutcomeScore, predictors, score_outcomes, with_outcomes

__all__ = ["TOLERANCE", "Evaluation", "Score", "count_correct", "evaluate", "load_published"]

TOLERANCE = 0.02  # points of error by which another machine's rounding may move a measurement


@dataclass(frozen=True)
class Score:
    """`correct` of `total` images classified rightly; `error` in %."""

    correct: int
    total: int

    @property
    def error(self) -> float:
        """Error in %, rounded to 4 decimals."""
        return round(100.0 * (self.total - self.correct) / self.total, 4)

    def row(self, prefix: str) -> dict[str, Any]:
        """Plain values for a run's log, from which `from_row` makes the score again."""
        return {f"{prefix}_{key}": value for key, value in self.to_dict().items()}

    @staticmethod
    def from_row(row: dict[str, Any], prefix: str) -> Score:
        """The score of a `row`."""
        return Score(row[f"{prefix}_correct"], row[f"{prefix}_total"])

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {"error": self.error, "correct": self.correct, "total": self.total}

    def __str__(self) -> str:
        return f"error {self.error:.2f} %"


def count_correct(
    model: nn.Module,
    data: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    batch_size: int = 250,
    mirror: bool = False,
) -> Score:
    """Classify all of `data`, on the device on which model and data lie. The model is left in evaluation mode.

    With `mirror` by the mean of the logits of an image and its mirror image (test-time augmentation).

    Always in the precision of the weights, also for a model that was trained in bf16, so that a figure in a card is
    what `evaluate` measures again.
    """
    model.eval()
    device = data.images.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad():
        for images, labels in zoo_data.batches(data, batch_size, shuffle=False, drop_last=False):
            x = zoo_data.normalize(images, mean, std)
            logits = model(x) + model(x.flip(3)) if mirror else model(x)
            correct += (logits.argmax(dim=1) == labels).sum()
    return Score(int(correct.item()), len(data))


@dataclass(frozen=True)
class Evaluation:
    """What was measured beside what was reported, on the test set of `dataset`.

    Where outcomes are no classes the errors are mean deviances, and `coverage` says how often predictive intervals hold
    an outcome, as they are, and on each half of the test set after calibration on the other.
    """

    name: str
    dataset: str
    reported: Score | OutcomeScore
    measured: Score | OutcomeScore
    coverage: tuple[Coverage, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the errors differ by at most `TOLERANCE` points (deviances: that many per cent), of as many images."""
        same_size = self.measured.total == self.reported.total
        allowed = TOLERANCE if isinstance(self.reported, Score) else TOLERANCE / 100 * self.reported.error
        return same_size and abs(self.measured.error - self.reported.error) <= allowed + 1e-9


def load_published(name: str) -> tuple[nn.Module, Path]:
    """A published model and the folder of its weights, whose sha256 was checked.

    Args:
        name: `arch`, whose default weights are meant, `arch.tag`, the folder of a finished run, or a repository of the
            Hub as `hf-hub:ORG/NAME[@REVISION]`.

    Raises:
        WeightsError: no such weights, or not those that were published.
        HubError: the Hub cannot be reached, refuses, or has no such repository.
    """
    if name.startswith("hf-hub:"):
        name = str(download(name))
    elif "/" in name and not Path(name).is_dir():
        raise WeightsError(f"{name}: is no folder; a repository of the Hub is written hf-hub:{name}")
    if Path(name).is_dir():
        folder = Path(name)
        if not (folder / "model.safetensors").is_file():
            raise WeightsError(f"{folder}: has no model.safetensors: give the folder of a finished run")
        verify_weights(folder / "model.safetensors")
        return timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval(), folder
    arch, _, tag = name.partition(".")
    if not tag and timm.is_model(arch):
        tag = timm.get_pretrained_cfg_value(arch, "tag") or ""
    folder = find_weights(arch, tag)
    return timm.create_model(f"{arch}.{tag}", pretrained=True).eval(), folder


def evaluate(
    name: str,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 250,
    mirror: bool = False,
) -> Evaluation:
    """Measure a published model's error anew.

    Args:
        name: as `load_published` takes it.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.
        batch_size: images at a time.
        mirror: the figure with test-time augmentation: logits averaged over an image and its mirror image.

    Raises:
        WeightsError: no such weights, or not those that were published.
        DataError: the dataset is missing or broken.
        ValueError: a batch size below 1, or no figure with mirror images was published.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size} must be 1 or more")
    model, folder = load_published(name)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    if mirror and "mirrored" not in metrics:
        raise ValueError(
            f"{name}: its metrics.json has no figure with mirror images, as runs with flips have one: leave out --mirror"
        )
    inputs = resolve_input_data_config(model=model)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    family = get_family(metrics.get("family", "categorical"))
    classes = isinstance(family, Categorical)
    if "finetuned_from" in metrics:  # on anybody's images, of any size
        from .finetuning.data import measured_images
        from .finetuning.targets import ClassTargets, OutcomeTargets, Targets

        targets: Targets = OutcomeTargets(family, tuple(metrics.get("outcome_names", ())))
        if classes:
            targets = ClassTargets(
                tuple(json.loads((folder / "config.json").read_text(encoding="utf-8"))["label_names"])
            )
        data = measured_images(folder, metrics, targets, inputs["input_size"], data_dir)
    else:
        data = zoo_data.load_dataset(
            metrics["dataset"],
            "test",
            data_dir=data_dir,
            input_size=tuple(inputs["input_size"]),
            num_classes=model.num_classes if classes else None,  # type: ignore[arg-type]
        )
        data = with_outcomes(data, family)
    if not classes:
        return _evaluate_outcomes(model.to(device), data.to(device), inputs, metrics, batch_size)
    measured = count_correct(
        model.to(device), data.to(device), inputs["mean"], inputs["std"], batch_size=batch_size, mirror=mirror
    )
    score = metrics["mirrored" if mirror else "last"]
    return Evaluation(
        f"{metrics['model']}.{metrics['tag']}", metrics["dataset"], Score(score["correct"], score["total"]), measured
    )


def _evaluate_outcomes(
    model: nn.Module, data: zoo_data.ImageData, inputs: dict[str, Any], metrics: dict[str, Any], batch_size: int
) -> Evaluation:
    """Deviance and metric on all of the data; coverage too, calibrated for each half by the other."""
    family, last = get_family(metrics["family"]), metrics["last"]
    y, eta = predictors(model, data, inputs["mean"], inputs["std"], batch_size)
    return Evaluation(
        f"{metrics['model']}.{metrics['tag']}",
        metrics["dataset"],
        OutcomeScore.from_row({f"_{key}": value for key, value in last.items()}, ""),
        score_outcomes(family, y, eta),
        tuple(calibrate(family, y, eta)),
    )
