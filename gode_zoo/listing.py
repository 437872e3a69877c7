"""Every architecture of the zoo with its weights and the error that was reported for them."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import timm

from .models._pretrained import list_weights

__all__ = ["ListedModel", "list_zoo"]


class ListedModel(NamedTuple):
    """One line of the list: an architecture with one of its weights, or with none.

    Attributes:
        arch: timm's name of the architecture.
        tag: name of the weights, None where none are bundled.
        num_parameters: of the architecture as created by its name alone.
        dataset: what the weights were trained on and tested with.
        error: test error in %, as reported in metrics.json.
    """

    arch: str
    tag: str | None
    num_parameters: int
    dataset: str | None = None
    error: float | None = None


def list_zoo() -> Iterator[ListedModel]:
    """GODE models first, then the baselines, then the related systems; sorted by name within each."""
    names = timm.list_models()
    for module in ("gode", "odenet", "resnet", "continuousnet", "splinet", "galerkin", "anode", "anodev2"):
        for arch in sorted(n for n in names if timm.model_entrypoint(n).__module__ == f"gode_zoo.models.{module}"):
            num_parameters = sum(p.numel() for p in timm.create_model(arch, device="meta").parameters())
            weights = [(tag, folder) for known, tag, folder in list_weights() if known == arch]
            if not weights:
                yield ListedModel(arch, None, num_parameters)
            for tag, folder in weights:
                metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
                yield ListedModel(arch, tag, num_parameters, metrics["dataset"], metrics["last"]["error"])
