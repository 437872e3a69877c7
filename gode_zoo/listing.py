"""Every architecture of the zoo with its weights and the error that was reported for them."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import timm

from .models._pretrained import list_weights
from .outcomes import OutcomeScore

__all__ = ["ListedModel", "list_zoo"]


class ListedModel(NamedTuple):
    """One line of the list: an architecture with one of its weights, or with none.

    Attributes:
        arch: timm's name of the architecture.
        tag: name of the weights, None where none are bundled.
        num_parameters: of the architecture as created by its name alone.
        dataset: what the weights were trained on and tested with.
        error: test error in %, as reported in metrics.json; None where outcomes are no classes.
        outcome: deviance and metric in words, where they are not.
    """

    arch: str
    tag: str | None
    num_parameters: int
    dataset: str | None = None
    error: float | None = None
    outcome: str | None = None


def list_zoo() -> Iterator[ListedModel]:
    """GODE models first, then the baselines, then the related systems; sorted by name within each."""
    names = timm.list_models()
    for module in ("gode", "gode3", "odenet", "resnet", "continuousnet", "splinet", "galerkin", "anode", "anodev2"):
        for arch in sorted(n for n in names if timm.model_entrypoint(n).__module__ == f"gode_zoo.models.{module}"):
            num_parameters = sum(p.numel() for p in timm.create_model(arch, device="meta").parameters())
            weights = [(tag, folder) for known, tag, folder in list_weights() if known == arch]
            if not weights:
                yield ListedModel(arch, None, num_parameters)
            for tag, folder in weights:
                metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
                last, error, outcome = metrics["last"], metrics["last"]["error"], None
                if "family" in metrics:
                    score = OutcomeScore.from_row({f"_{key}": value for key, value in last.items()}, "")
                    error, outcome = None, str(score)
                yield ListedModel(arch, tag, num_parameters, metrics["dataset"], error, outcome)
