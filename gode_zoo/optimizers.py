"""The optimiser of a recipe, by timm."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from .recipes import Optimizer

__all__ = ["make_optimizer"]


def make_optimizer(model: nn.Module, settings: Optimizer, **options: Any) -> torch.optim.Optimizer:
    """`settings` for `model`; `options` are `create_optimizer_v2`'s own, such as layer_decay.

    Weight decay spares biases, norms and what the model's `no_weight_decay()` lists. Muon leaves these, the classifier and
    the first convolution to AdamW, as its author advises.
    """
    if settings.name == "muon":
        cfg = getattr(model, "pretrained_cfg", {})
        names = [name for key in ("classifier", "first_conv") for name in _names(cfg.get(key))]
        options |= {"fallback_list": [f"{name}.*" for name in names], "fallback_no_weight_decay": True}
    elif next(model.parameters()).device.type == "cuda":
        options["fused"] = True
    return create_optimizer_v2(
        model,
        opt=settings.name,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        filter_bias_and_bn=True,
        **options,
    )


def _names(value: Any) -> list[str]:
    """timm has one name, several, or none."""
    return [value] if isinstance(value, str) else list(value or ())
