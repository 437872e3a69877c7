"""The model that fine-tuning starts from: weights of the zoo, fitted to other images and other labels.

    start = find_start("gode_mnist_m4")
    model = make_model(start, ClassTargets(("cat", "dog")), channels=3, image_size=64)

Channels: a model of three takes grey images as RGB; one of one that is given colours gets its first convolution spread over
three channels, so that it sees the mean of the three and gives the same features as before.
Head: where the model knows every class by name its rows of the classifier are kept, in the new order; of
outcomes it is kept where they are of the same family and link; else it begins anew.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from torch import nn

from ..evaluate import load_published
from ..families import Categorical, Family
from .targets import OutcomeTargets, Targets

__all__ = ["FREEZE", "Start", "find_start", "freeze", "make_model"]

_logger = logging.getLogger(__name__)

FREEZE = ("none", "stem", "all-but-head")


@dataclass(frozen=True)
class Start:
    """Where fine-tuning starts: `source` is the weights' name and None where they are random; the folder holds them."""

    arch: str
    source: str | None
    folder: Path | None
    channels: int
    image_size: int
    label_names: tuple[str, ...]
    family: Family | None = None


def find_start(name: str, *, pretrained: bool = True, outcomes: bool = False) -> Start:
    """Find and check the weights of `name`.

    Args:
        name: `arch`, `arch.tag`, `hf-hub:ORG/NAME`, or the folder of a finished run.
        pretrained: False starts from random weights; an architecture that has no weights is then allowed too.
        outcomes: what is learned are outcomes, so that a model of outcomes will do.

    Raises:
        WeightsError: no such weights, or not those that were published.
        ValueError: no such architecture, or a model of outcomes where classes are learned.
    """
    if not pretrained and timm.is_model(name):
        cfg = timm.get_pretrained_cfg(name)
        if cfg is None or not cfg.input_size:
            raise ValueError(
                f"model {name!r} does not say which images it takes: choose one that `gode-zoo list` names"
            )
        return Start(cfg.architecture or name, None, None, cfg.input_size[0], cfg.input_size[1], ())
    model, folder = load_published(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    family = getattr(model, "family", None)
    if family is not None and not isinstance(family, Categorical) and not outcomes:
        raise ValueError(f"{name}: predicts {family.name} outcomes, not classes: choose a model of classes")
    channels, height, _ = config["pretrained_cfg"]["input_size"]
    source = name if name.startswith("hf-hub:") else f"{metrics['model']}.{metrics['tag']}"
    labels = tuple(config.get("label_names") or ())
    return Start(config["architecture"], source if pretrained else None, folder, channels, height, labels, family)


def make_model(start: Start, targets: Targets, channels: int, image_size: int, *, pretrained: bool = True) -> Any:
    """The model to train, and its `pretrained_cfg` saying what it takes: (channels, image_size, image_size).

    Random numbers are drawn for what is new; seed them first.
    """
    name = f"local-dir:{start.folder.resolve()}" if start.folder else start.arch
    outputs, family = targets.num_outputs, {} if targets.classes else {"family": targets.recipe_family}
    model: Any = timm.create_model(name, pretrained=pretrained, num_classes=outputs, in_chans=channels, **family)
    inputs = resolve_input_data_config(model)  # mean and std for as many channels as it has
    cfg = dict(model.pretrained_cfg) | {
        "input_size": (channels, image_size, image_size),
        "mean": inputs["mean"],
        "std": inputs["std"],
        "num_classes": outputs,
    }
    for key in ("label_names", "label_descriptions", *(("pool_size",) if image_size != start.image_size else ())):
        cfg.pop(key, None)
    model.pretrained_cfg = cfg
    if pretrained:
        _keep_head(model, start, targets.classes, name) if targets.classes else _keep_outcomes(model, start, targets)
    return model


def _keep_head(model: Any, start: Start, classes: tuple[str, ...], name: str) -> None:
    if not set(classes) <= set(start.label_names):
        # timm keeps the classifier where the number of classes is the same, whatever they are.
        if len(classes) == len(start.label_names):
            model.reset_classifier(len(classes))
        _logger.info("classifier: new, for %d classes", len(classes))
        return
    loaded: Any = timm.create_model(name, pretrained=True)
    old = loaded.get_classifier()
    rows = [start.label_names.index(label) for label in classes]
    with torch.no_grad():
        model.get_classifier().weight.copy_(old.weight[rows])
        model.get_classifier().bias.copy_(old.bias[rows])
    _logger.info("classifier: kept, for it knows these %d classes", len(classes))


def _keep_outcomes(model: Any, start: Start, targets: Targets) -> None:
    assert isinstance(targets, OutcomeTargets)
    wanted, had = targets.family, start.family
    if had is not None and (had.name, had.link.name) == (wanted.name, wanted.link.name):
        targets.unfold(model)
        _logger.info("last layer: kept, for it gives %s outcomes", wanted.name)
        return
    model.reset_classifier(1)  # which timm has kept where it had one output of another kind
    _logger.info("last layer: new, for %s outcomes", wanted.name)


def freeze(model: Any, what: str) -> None:
    """Take parameters out of training: those of the stem, or all but the classifier's.

    Raises:
        ValueError: another word.
    """
    if what not in FREEZE:
        raise ValueError(f"freeze = {what!r} is not known (allowed: {', '.join(FREEZE)})")
    if what == "none":
        return
    head: nn.Module = model.get_classifier()
    kept = {id(p) for p in head.parameters()} if what == "all-but-head" else None
    for parameter in model.parameters() if kept is not None else model.stem.parameters():
        if kept is None or id(parameter) not in kept:
            parameter.requires_grad_(False)
