"""What changes while a model trains, with its way into a checkpoint and back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .provenance import hardware, source_revision
from .recipes import Recipe
from .run_folder import CHECKPOINT_FORMAT, CheckpointError, recipe_sha256

__all__ = ["NonFiniteLossError", "RunState", "refuse_non_finite_loss", "refuse_non_finite_weights"]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class RunState:
    """Everything that changes while training, with its way into a checkpoint and back."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        ema: ModelEmaV3 | None,
        order: torch.Generator,
        augment: torch.Generator,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.ema = model, optimizer, schedule, ema
        self.order, self.augment, self.device = order, augment, device
        self.order_at_epoch_start = order.get_state()
        self.epoch = 0  # epochs done
        self.batch = 0  # batches of the present epoch done
        self.step = 0  # updates done
        self.seconds = 0.0
        # the code and the machine that made it; a resumed run may have several
        self.sources: list[dict[str, Any]] = [{"from_step": 0, "git": source_revision(), "hardware": hardware(device)}]
        self.history: list[dict[str, Any]] = []
        # sums over the present epoch, () on the device
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def start_epoch(self) -> None:
        """Set the sums to nought, and note where the epoch's order is drawn from."""
        self.order_at_epoch_start = self.order.get_state()
        for total in (self.loss_sum, self.correct, self.seen):
            total.zero_()

    def state(self, recipe: Recipe, steps_per_epoch: int) -> dict[str, Any]:
        """Tensors, dicts, lists and scalars only, so that it loads with `weights_only=True`."""
        return {
            "format": CHECKPOINT_FORMAT,
            "recipe": recipe.to_dict(),
            "recipe_sha256": recipe_sha256(recipe),
            "steps_per_epoch": steps_per_epoch,
            "device": self.device.type,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "rng": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                "order_at_epoch_start": self.order_at_epoch_start,
                "order": self.order.get_state(),
                "augment": self.augment.get_state(),
            },
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "sources": self.sources,
            "history": self.history,
            "sums": [self.loss_sum, self.correct, self.seen],
        }

    def restore(self, state: dict[str, Any], steps_per_epoch: int, path: Path) -> None:
        """Take up `state`, as read by `read_checkpoint`."""
        if state["steps_per_epoch"] != steps_per_epoch:
            raise CheckpointError(
                f"{path}: was made with {state['steps_per_epoch']} batches an epoch, now there are {steps_per_epoch}: "
                f"the training data has changed; give the same data, or train into a new folder"
            )
        if state["device"] != self.device.type:
            raise CheckpointError(
                f"{path}: was made on {state['device']}, this run is on {self.device.type}, whose random generators differ: "
                f"resume with --device {state['device']}"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            if self.ema:
                self.ema.module.load_state_dict(state["ema"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit the model as it is now: {error}") from error
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.seconds, self.history = state["seconds"], state["history"]
        now, self.sources = self.sources[-1], state["sources"]
        if any(self.sources[-1].get(key) != now[key] for key in ("git", "hardware")):
            self.sources.append(now | {"from_step": self.step})
        for own, read in zip((self.loss_sum, self.correct, self.seen), state["sums"], strict=True):
            own.copy_(read)
        rng = state["rng"]
        self.augment.set_state(rng["augment"])
        # In the middle of an epoch its order is drawn anew, from where it was drawn at first.
        self.order_at_epoch_start = rng["order_at_epoch_start"]
        self.order.set_state(rng["order_at_epoch_start"] if 0 < self.batch < steps_per_epoch else rng["order"])
        torch.set_rng_state(rng["torch"])
        if rng["cuda"] is not None:
            torch.cuda.set_rng_state(rng["cuda"], self.device)


_MEND = "Lower optimizer.lr, or lengthen schedule.warmup"


def refuse_non_finite_loss(run: RunState, checkpoint: Path, mend: str = _MEND) -> None:
    if not math.isfinite(run.loss_sum.item()):
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "no checkpoint was made yet"
        raise NonFiniteLossError(
            f"the loss is NaN or infinite at step {run.step} (epoch {run.epoch + 1}, batch {run.batch}); {kept}. {mend}"
        )


def refuse_non_finite_weights(weights: dict[str, Tensor], step: int, mend: str = _MEND) -> None:
    """Never save weights that are no good; the check costs a glance at each tensor."""
    bad = [name for name, w in weights.items() if w.is_floating_point() and not bool(torch.isfinite(w).all())]
    if bad:
        raise NonFiniteLossError(
            f"weight {bad[0]} is NaN or infinite after step {step}; the checkpoint was left as it was. {mend}"
        )
