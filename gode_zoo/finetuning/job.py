"""One run of fine-tuning: its recipe, model and images, the loop over them, and what it leaves in its folder.

`finetune.py` makes the job and says what is done in which order. Shapes: B images of a batch, (B, C, H, W) uint8 until
they are normalised; outputs (B, number of classes), or (B, 1) of outcomes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.model_config import resolve_input_data_config
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .. import data as zoo_data
from ..augmentation import move
from ..calibration import Coverage
from ..evaluate import Score
from ..metrics import write_metrics
from ..optimizers import make_optimizer
from ..outcomes import OutcomeScore
from ..recipes import learning_rate
from ..report import write_report
from ..run_display import counting, display, stop_signals
from ..run_folder import (
    atomic_write,
    read_checkpoint,
    remove_leftovers,
    save_initial_kernels,
    save_weights,
    torch_bytes,
    write_log,
)
from ..run_state import RunState, refuse_non_finite_loss, refuse_non_finite_weights
from ..train import TrainingInterrupted
from .data import FinetuneData
from .lr_range import LRRange, find_lr
from .out_of_memory import OutOfMemoryHint, batch_that_fits, is_out_of_memory
from .recipe import FinetuneRecipe
from .targets import Predictions

__all__ = ["FinetuneJob", "FinetuneResult"]

_logger = logging.getLogger(__name__)

_MEND = "Lower --lr, or check the images"
_PROBE = 128  # images on which the range test watches the loss


@dataclass(frozen=True)
class FinetuneResult:
    """What a call of `finetune` came to.

    `finished` is false where `max_steps` ended it, and `error` (in %, of `split`; of outcomes the mean deviance) and `score`
    are None then; `best_epoch` is the one whose weights were kept. `history` has one dict an epoch. `coverage`, of outcomes
    alone, says how often predictive intervals hold one.
    """

    out_dir: Path
    finished: bool
    step: int
    seconds: float
    lr: float
    best_epoch: int | None
    val_error: float | None
    split: str
    error: float | None
    classes: tuple[str, ...]
    history: list[dict[str, Any]]
    score: Score | OutcomeScore | None = None
    coverage: tuple[Coverage, ...] = ()


class FinetuneJob:
    """One run: its recipe, model and images, and what is done with them."""

    def __init__(
        self, recipe: FinetuneRecipe, out: Path, model: Any, data: FinetuneData, device: torch.device, progress: bool
    ) -> None:
        self.recipe, self.out, self.model, self.device, self.progress = recipe, out, model, device, progress
        self.data, self.targets = data, data.targets
        self.images, self.labels = data.train.images.to(device), data.train.labels.to(device)
        inputs = resolve_input_data_config(model)
        self.mean, self.std = inputs["mean"], inputs["std"]
        self.lr_range: LRRange | None = None
        self.weights: Tensor | None = None  # of each image, in drawing
        if recipe.balanced:
            self.weights = (1.0 / self.labels.bincount().double())[self.labels]
        self.steps_per_epoch = math.ceil(len(self.labels) / recipe.batch_size)

    def make_optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """SGD whose groups have the rate `lr * lr_scale`, the scale falling towards the stem."""
        settings = dataclasses.replace(self.recipe.optimizer, lr=lr)
        optimizer = make_optimizer(model, settings, layer_decay=self.recipe.layer_decay)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return optimizer

    def order(self, generator: torch.Generator) -> Tensor:
        """Which images an epoch shows, (N,): each once, or each class equally often."""
        count = len(self.labels)
        if self.weights is None:
            return torch.randperm(count, generator=generator, device=self.device)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def batch(self, index: Tensor, augment: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented, normalised images (B, C, H, W) and their labels (B,)."""
        images = move(self.images[index], self.recipe.augment, augment)
        return zoo_data.normalize(images, self.mean, self.std), self.labels[index]

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        """Outputs, in the run's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp == "bf16"):
            return model(x).float()

    def loss(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """What is minimised."""
        return self.targets.loss(self.forward(model, x), labels) / self.targets.unit

    # The learning rate

    def find_lr(self, resume: bool) -> None:
        """Put the rate of a range test into the recipe: of the one that a resumed run made, or of a new one."""
        file = self.out / "lr_range.csv"
        if resume and file.exists():
            self.lr_range = LRRange.from_csv(file.read_text())
        else:
            order, augment = (torch.Generator(self.device).manual_seed(self.recipe.seed + k * 2**33) for k in (1, 2))

            def batches() -> Iterator[tuple[Tensor, Tensor]]:
                while True:
                    for index in self.order(order).split(self.recipe.batch_size):
                        yield self.batch(index, augment)

            some = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.recipe.seed))[:_PROBE]
            some = some.to(self.device)
            probe = zoo_data.normalize(self.images[some], self.mean, self.std), self.labels[some]
            try:
                with counting(self.progress, "Finding the learning rate", 50) as show:
                    self.lr_range = find_lr(self.model, self.make_optimizer, batches(), self.loss, probe, on_step=show)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise self.hint(error) from error
            found = self.lr_range
            atomic_write(file, lambda f: f.write(found.to_csv().encode()))
        self.recipe = dataclasses.replace(
            self.recipe, optimizer=dataclasses.replace(self.recipe.optimizer, lr=self.lr_range.lr)
        )
        _logger.info("learning rate %g, by a range test of %d steps", self.lr_range.lr, len(self.lr_range.curve))

    def hint(self, error: BaseException) -> OutOfMemoryHint:
        """Try smaller batches, and say which fits."""
        shape = tuple(self.images.shape[1:])

        def step(batch: int) -> None:
            x = torch.zeros(batch, *shape, device=self.device)
            self.loss(self.model, x, self.labels[:1].expand(batch)).backward()
            self.model.zero_grad(set_to_none=True)

        self.model.zero_grad(set_to_none=True)
        fits = batch_that_fits(step, self.recipe.batch_size)
        mend = (
            f"a batch of {fits} fits: --batch-size {fits}" if fits else "not even one image fits: --image-size smaller"
        )
        return OutOfMemoryHint(f"out of memory at a batch of {self.recipe.batch_size} images of {shape}; {mend}")

    # Training

    def train(
        self,
        resume: bool,
        max_steps: int | None,
        checkpoint_every_s: float,
        started: float,
        summary_writer: Any,
        command: str,
    ) -> FinetuneResult:
        """The loop, and what it leaves."""
        recipe, out, model = self.recipe, self.out, self.model
        checkpoint = out / "checkpoint.pt"
        saved = read_checkpoint(checkpoint, recipe) if resume else None
        optimizer = self.make_optimizer(model, recipe.optimizer.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(recipe, step, self.steps_per_epoch) / recipe.optimizer.lr
        )
        ema = ModelEmaV3(model, decay=recipe.ema_decay or 0.0)
        order = torch.Generator(self.device).manual_seed(recipe.seed)
        augment = torch.Generator(self.device).manual_seed(recipe.seed + 2**32)
        run = RunState(model, optimizer, schedule, ema, order, augment, self.device)
        best: dict[str, Tensor] = {}
        if saved is not None:
            run.restore(saved, self.steps_per_epoch, checkpoint)
            best = saved["best"]
            remove_leftovers(out)
        else:
            atomic_write(out / "recipe.yaml", lambda file: file.write(recipe.to_yaml().encode()))
            save_initial_kernels(out, model)
        seconds_before, last_save, first_step = run.seconds, time.monotonic(), run.step

        def save() -> None:
            run.seconds = seconds_before + time.monotonic() - started
            state = run.state(recipe, self.steps_per_epoch) | {"best": best}
            refuse_non_finite_weights(state["model"], run.step, _MEND)
            atomic_write(checkpoint, lambda file: file.write(torch_bytes(state)))

        if saved is None:
            save()
        else:
            write_log(out / "train_log.csv", run.history)  # without the rows after the checkpoint

        with ExitStack() as stack:
            stop = stack.enter_context(stop_signals())
            show = stack.enter_context(display(self.progress, recipe, self.steps_per_epoch, run.step))
            board = None
            if summary_writer is not None:
                board = summary_writer(str(out / "tensorboard"), purge_step=run.epoch + 1)
                stack.callback(board.close)
            while run.epoch < recipe.epochs and not _is_patience_over(run.history, recipe.patience):
                if run.batch == 0:  # not in the middle of an epoch
                    run.start_epoch()
                model.train()
                # Stopped after an epoch's last batch, its order is not drawn again.
                rest = (
                    () if run.batch == self.steps_per_epoch else self.order(order).split(recipe.batch_size)[run.batch :]
                )
                for index in rest:
                    x, labels = self.batch(index, augment)
                    outputs = self.forward(model, x)
                    loss = self.targets.loss(outputs, labels)
                    optimizer.zero_grad(set_to_none=True)
                    (loss / self.targets.unit).backward()
                    optimizer.step()
                    schedule.step()
                    run.step += 1
                    run.batch += 1
                    ema.update(model, step=run.step)
                    run.loss_sum += loss.detach().double() * len(labels)
                    run.correct += self.targets.count_right(outputs.detach(), labels)
                    run.seen += len(labels)
                    if self.device.type == "cpu" or run.step % 20 == 0 or run.batch == self.steps_per_epoch:
                        refuse_non_finite_loss(run, checkpoint, _MEND)
                        show(run)
                    reached = max_steps is not None and run.step - first_step >= max_steps
                    if stop or reached or time.monotonic() - last_save > checkpoint_every_s:
                        save()
                        last_save = time.monotonic()
                    if stop:
                        raise TrainingInterrupted(f"stopped by {stop[0]} at step {run.step}; saved {checkpoint}")
                    if reached and run.step < recipe.epochs * self.steps_per_epoch:
                        return self.result(run, None, None)
                self.end_epoch(run, ema.module, best, seconds_before + time.monotonic() - started, board)
                save()
                last_save = time.monotonic()
                write_log(out / "train_log.csv", run.history)
                if stop and run.epoch < recipe.epochs and not _is_patience_over(run.history, recipe.patience):
                    raise TrainingInterrupted(f"stopped by {stop[0]} after epoch {run.epoch}; saved {checkpoint}")
        ema.module.load_state_dict(best)
        return self.finish(run, ema.module, command)

    def end_epoch(
        self, run: RunState, published: nn.Module, best: dict[str, Tensor], seconds: float, board: Any
    ) -> None:
        """Measure on the validation images, add a row to the history, and keep the weights where they are the best."""
        val = self.measure(self.targets.folded(published), self.data.val)
        row: dict[str, Any] = {
            "epoch": run.epoch + 1,
            "step": run.step,
            "lr": learning_rate(self.recipe, run.step - 1, self.steps_per_epoch),
            "train_loss": (run.loss_sum / run.seen).item(),
            **self.targets.train_figures(run),
            "val_error": val.error,
            "val_loss": val.loss,
            "seconds": round(seconds, 1),
        }
        run.history.append(row)
        if _best_row(run.history) is row:
            best.clear()
            best.update({name: value.detach().clone() for name, value in published.state_dict().items()})
        run.epoch, run.batch = run.epoch + 1, 0
        _logger.info(
            "epoch %d/%d  loss %.4f  validation %s%s",
            run.epoch, self.recipe.epochs, row["train_loss"], val.score, "  best so far" if _best_row(run.history) is row else "",
        )  # fmt: skip
        if board is not None:
            for key in ("lr", "train_loss", *self.targets.train_figures(run), "val_error", "val_loss"):
                board.add_scalar(key, row[key], run.epoch)

    def measure(self, model: nn.Module, data: zoo_data.ImageData) -> Predictions:
        """Predictions in the weights' own precision."""
        return self.targets.predict(model, data, self.mean, self.std)

    # What comes out

    def finish(self, run: RunState, published: nn.Module, command: str) -> FinetuneResult:
        """Write weights, metrics and report of the best epoch."""
        best = _best_row(run.history)
        published = self.targets.folded(published)
        val = self.measure(published, self.data.val)
        measured = self.data.test or self.data.val
        split = "test" if self.data.test else "validation"
        predictions, more = self.targets.finish(
            published, val, self.measure(published, measured) if self.data.test else val
        )
        score = predictions.score
        save_weights(self.out, published, self.recipe, self.targets.classes)
        selected: dict[str, Any] = {
            "epoch": best["epoch"],
            "val_error": best["val_error"],
            "selected_by": "the validation split",
        }
        if self.data.test:
            selected |= score.to_dict()
        changes = {
            "finetuned_from": self.recipe.finetuned_from,
            "split": split,
            "epochs": run.epoch,
            "last": {"epoch": best["epoch"], **score.to_dict()},
            **more,
        }
        write_metrics(self.out, published, self.recipe, run, score, (selected, None), changes)
        write_report(
            self.out,
            model=published,
            recipe=self.recipe,
            history=run.history,
            lr_range=self.lr_range,
            findings=self.targets.findings(
                predictions,
                run.history,
                measured,
                self.data.names["test" if self.data.test else "val"],
                self.labels,
                split,
            ),
            split=split,
            broken=self.data.broken,
            command=command,
        )
        return self.result(run, predictions, split)

    def result(self, run: RunState, predictions: Predictions | None, split: str | None) -> FinetuneResult:
        """Of a run that is finished, where there are predictions, or was ended before."""
        best = _best_row(run.history) if run.history else None
        return FinetuneResult(
            out_dir=self.out,
            finished=predictions is not None,
            step=run.step,
            seconds=run.seconds,
            lr=self.recipe.optimizer.lr,
            best_epoch=best["epoch"] if best else None,
            val_error=best["val_error"] if best else None,
            split=split or ("test" if self.data.test else "validation"),
            error=predictions.error if predictions else None,
            classes=self.targets.classes,
            history=run.history,
            score=predictions.score if predictions else None,
            coverage=getattr(predictions, "coverage", ()),
        )


def _best_row(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch with the lowest validation error; of equals that with the lowest loss, then the first."""
    return min(history, key=lambda row: (row["val_error"], row["val_loss"]))


def _is_patience_over(history: list[dict[str, Any]], patience: int) -> bool:
    return bool(history and patience) and history[-1]["epoch"] - _best_row(history)["epoch"] >= patience
