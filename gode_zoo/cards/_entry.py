"""The folder of a finished run, read and held against itself: what a card may say is what its files agree on."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CardError", "Entry", "read_entry", "read_hub"]

# timm's name of a data set: what people call it, and its name on the Hugging Face Hub.
_DATASETS = {"torch/mnist": ("MNIST", "ylecun/mnist"), "torch/cifar10": ("CIFAR-10", "uoft-cs/cifar10")}


class CardError(RuntimeError):
    """A folder from which no true card can be made, or a README.md without the markers of the table."""


@dataclass(frozen=True)
class Entry:
    """The folder of one weight: the content of its metrics.json, config.json, recipe.yaml and train_log.csv.

    Attributes:
        bundled: the weights are one of the zoo's, so that they load by their name.
        log: one row an epoch, the values as they stand in the file; no row where there is no log.
    """

    folder: Path
    metrics: dict[str, Any]
    config: dict[str, Any]
    recipe: str
    log: tuple[dict[str, str], ...]
    bundled: bool

    @property
    def name(self) -> str:
        return f"{self.metrics['model']}.{self.metrics['tag']}"

    @property
    def dataset(self) -> str:
        """What people call the data set; of a folder or file its own name, not where it lies."""
        return _DATASETS.get(self.metrics["dataset"], (Path(self.metrics["dataset"]).name,))[0]

    @property
    def hub_dataset(self) -> str | None:
        """The data set's name on the Hugging Face Hub, where it has one."""
        source, _, name = str(self.metrics["dataset"]).partition("/")
        if source == "hfds" and name:
            return name
        return _DATASETS.get(self.metrics["dataset"], (None, None))[1]

    @property
    def has_outcomes(self) -> bool:
        """Whether the model predicts outcomes that are no classes."""
        return "family" in self.metrics

    @property
    def accuracy(self) -> float:
        """Of these weights on the split that metrics.json names, in %."""
        return 100.0 * self.metrics["last"]["correct"] / self.metrics["last"]["total"]

    @property
    def errors(self) -> tuple[float, ...]:
        """In %, of each seed; that of these weights where no other was recorded."""
        return tuple(self.metrics.get("seed_errors") or [self.metrics["last"]["error"]])

    @property
    def standard_error(self) -> float:
        """Of the accuracy, in points, as the number of images gives it."""
        p = self.metrics["last"]["correct"] / self.metrics["last"]["total"]
        return 100.0 * math.sqrt(p * (1.0 - p) / self.metrics["last"]["total"])


def read_hub(hub: Path) -> list[Entry]:
    """Every published model under `hub`, by name; an empty list where there is none.

    Raises:
        CardError: see `read_entry`; or a folder's name is not that of its model.
    """
    entries = [read_entry(file.parent, bundled=True) for file in sorted(hub.glob("*/metrics.json"))]
    for entry in entries:
        if entry.folder.name != entry.name:
            raise CardError(
                f"{entry.folder}: metrics.json is about {entry.name}: rename the folder or restore the file"
            )
    return entries


def read_entry(folder: Path, *, bundled: bool = False) -> Entry:
    """The folder of one finished run.

    Args:
        bundled: the weights are one of the zoo's.

    Raises:
        CardError: a file is missing or damaged, an error contradicts its counts, or the weights or the recipe are not
            those that metrics.json names.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise CardError(
            f"{error.filename}: {error.strerror}: a card needs it; train the model anew or restore it"
        ) from None
    except ValueError as error:
        raise CardError(f"{folder}: metrics.json or config.json is not valid JSON ({error}): restore it") from None
    entry = Entry(folder, metrics, config, recipe, _read_log(folder / "train_log.csv"), bundled)
    try:
        actual = {"sha256": weights, "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest()}
        for key, file in (("sha256", "model.safetensors"), ("recipe_sha256", "recipe.yaml")):
            if metrics[key] != actual[key]:
                raise CardError(
                    f"{folder / file}: sha256 is {actual[key]}, but metrics.json is about {metrics[key]}: its figures "
                    "are not those of this file; restore one of the two"
                )
        scores = {"last": metrics["last"], "best": metrics["best"], "mirrored": metrics.get("mirrored")}
        for which, score in scores.items():
            if score and "total" in score and entry.has_outcomes:
                mean = score["deviance"] / score["total"]
                if not math.isclose(score["error"], mean, rel_tol=1e-6, abs_tol=1e-9):
                    raise CardError(
                        f"{folder / 'metrics.json'}: {which}.error = {score['error']}, but a deviance of {score['deviance']} "
                        f"over {score['total']} outcomes is {mean:.6g} an outcome: correct it"
                    )
            elif score and "total" in score:
                percent = 100.0 * (score["total"] - score["correct"]) / score["total"]
                if not math.isclose(score["error"], percent, abs_tol=1e-3):
                    raise CardError(
                        f"{folder / 'metrics.json'}: {which}.error = {score['error']}, but {score['correct']} correct "
                        f"of {score['total']} are an error of {percent:.4f} %: correct it"
                    )
    except KeyError as error:
        raise CardError(
            f"{folder / 'metrics.json'}: has no {error}: train the model anew or restore the file"
        ) from None
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise CardError(
            f"{folder}: metrics.json or config.json has a value of the wrong kind ({error}): restore it"
        ) from None
    return entry


def _read_log(path: Path) -> tuple[dict[str, str], ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: cannot be read ({error}): restore it") from None
    rows = list(csv.DictReader(io.StringIO(text)))
    if any(None in row or None in row.values() for row in rows):
        raise CardError(f"{path}: has a row that is longer or shorter than its head: restore it")
    return tuple(rows)
