"""Training: one readable loop, a log, and checkpoints from which a run goes on as if it had never stopped.

    result = train(load_recipe("gode_mnist_m4.modern"), "hub/gode_mnist_m4.modern")

The images lie on the device as uint8 (N, C, H, W); each batch is cropped, flipped and normalised there.
Nothing is selected: the weights of the last epoch are published. With `holdout` the best epoch by the held-out split is
named beside it. The test set is read once, after the last epoch, unless the recipe says `log_test`, and then its
per-epoch figures are information only.

`run_folder.py` says what a run leaves in its folder, which is then a Hub repository in timm's format.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from . import data as zoo_data
from .evaluate import Score, count_correct
from .penalties import SplinePenalty
from .recipes import Recipe, learning_rate
from .run_folder import (
    CHECKPOINT_FORMAT,
    LOG_COLUMNS,
    CheckpointError,
    atomic_write,
    best_epoch,
    read_checkpoint,
    recipe_sha256,
    refuse_used_folder,
    save_weights,
    source_revision,
    write_log,
    write_metrics,
)
from .surgery import refine, refine_

__all__ = ["CheckpointError", "NonFiniteLossError", "TrainResult", "TrainingInterrupted", "train"]

_logger = logging.getLogger(__name__)

_SHOW_EVERY = 20  # steps between looks at the running sums; on a GPU each look waits for the device


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; a checkpoint was saved, and the message says how to go on."""


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` came to.

    `finished` is false where `max_steps` ended it; `last` is the published weights' score on the test set (None until
    finished) and `best` describes the best epoch, where one is known; `history` has one dict an epoch (errors in %).
    """

    out_dir: Path
    finished: bool
    step: int
    seconds: float
    last: Score | None
    best: dict[str, Any] | None
    history: list[dict[str, Any]]


def train(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    checkpoint_every_s: float = 300.0,
    progress: bool = True,
) -> TrainResult:
    """Train as `recipe` says and leave a Hub folder in `out_dir`.

    Args:
        recipe: from `load_recipe`.
        out_dir: made if need be; a folder that already holds a run is refused unless `resume`.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.
        resume: go on from `out_dir/checkpoint.pt`; on a CPU bit for bit as if never stopped.
        max_steps: end this call after so many updates, with a checkpoint.
        checkpoint_every_s: seconds between checkpoints within an epoch; each epoch ends with one as well.
        progress: show a progress bar, where stderr is a terminal.

    Raises:
        CheckpointError: nothing to resume, a checkpoint of another recipe or a damaged one, or a folder in use.
        NonFiniteLossError: the loss became NaN or infinite.
        TrainingInterrupted: Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps = {max_steps} must be 1 or more, or None for the whole recipe")
    out = Path(out_dir)
    checkpoint_path = out / "checkpoint.pt"
    saved = read_checkpoint(checkpoint_path, recipe) if resume else None
    if not resume:
        refuse_used_folder(out)
    started = time.monotonic()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    # Model. Seeded first, so that the same recipe gives the same initial weights.
    torch.manual_seed(recipe.seed)
    model = timm.create_model(recipe.model, pretrained=False, **recipe.model_args).to(device)
    inputs = resolve_input_data_config(model)  # of its pretrained_cfg, for the channels that it has
    mean, std = inputs["mean"], inputs["std"]

    # Data, as uint8 on the device.
    def load(split: str) -> Any:
        return zoo_data.load_dataset(
            recipe.dataset,
            split=split,
            data_dir=data_dir,
            input_size=tuple(inputs["input_size"]),
            num_classes=model.num_classes,  # type: ignore[arg-type]
        )

    train_data, test_data, val_data = load("train"), load("test").to(device), None
    if recipe.holdout:
        train_data, val_data = zoo_data.holdout(train_data, recipe.holdout, recipe.seed)
        val_data = val_data.to(device)
    train_data = train_data.to(device)
    if train_data.classes != test_data.classes:
        raise zoo_data.DataError(
            f"{train_data.source} has classes {', '.join(train_data.classes)}, {test_data.source} has "
            f"{', '.join(test_data.classes)}: both must have the same class folders"
        )
    steps_per_epoch = (
        len(train_data) // recipe.batch_size if recipe.drop_last else -(-len(train_data) // recipe.batch_size)
    )
    if steps_per_epoch < 1:
        raise ValueError(
            f"recipe {recipe.name}: batch_size = {recipe.batch_size} is more than the {len(train_data)} training images "
            f"and drop_last leaves no batch: make batch_size smaller or drop_last false"
        )

    penalty = SplinePenalty(model, **dataclasses.asdict(recipe.penalty)) if recipe.penalty else None
    if recipe.refine:  # tried beforehand: one that cannot be done would stop the run in its middle
        refine(model, recipe.refine[-1].num_basis)

    # Optimiser, schedule, moving average; two generators, one for the order of the data and one for augmentation.
    optimizer = create_optimizer_v2(
        model,
        opt=recipe.optimizer.name,
        lr=recipe.optimizer.lr,
        momentum=recipe.optimizer.momentum,
        nesterov=recipe.optimizer.nesterov,
        weight_decay=recipe.optimizer.weight_decay,
        filter_bias_and_bn=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe, step, steps_per_epoch) / recipe.optimizer.lr
    )
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    published = ema.module if ema else model
    order = torch.Generator(device).manual_seed(recipe.seed)
    augment = torch.Generator(device).manual_seed(recipe.seed + 2**32)  # a stream that no other seed's order has
    run = _Run(model, optimizer, schedule, ema, order, augment, device)

    def refine_after(epoch: int) -> None:
        for refinement in recipe.refine:
            if refinement.epoch == epoch:
                refine_(model, refinement.num_basis, optimizer)
                if ema:
                    refine_(ema.module, refinement.num_basis)

    if saved is not None:
        for epoch in range(saved["epoch"]):
            refine_after(epoch + 1)
        run.restore(saved, steps_per_epoch, checkpoint_path)
    else:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "recipe.yaml", lambda file: file.write(recipe.to_yaml().encode()))

    def save() -> None:
        run.seconds = seconds_before + time.monotonic() - started
        state = run.state(recipe, steps_per_epoch)
        _refuse_non_finite(state["model"], run.step)
        atomic_write(checkpoint_path, lambda file: torch.save(state, file))

    if resume:
        write_log(out / "train_log.csv", run.history)  # without the rows after the checkpoint
    seconds_before, last_save, first_step = run.seconds, time.monotonic(), run.step
    forward: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False) if recipe.compile else model
    bf16 = recipe.amp == "bf16"

    with _stop_signals() as stop, _display(progress, recipe, steps_per_epoch, run.step) as show:
        for epoch in range(run.epoch, recipe.epochs):
            if run.batch == 0:  # not in the middle of an epoch
                run.order_at_epoch_start = order.get_state()
                run.loss_sum.zero_(), run.correct.zero_(), run.seen.zero_()
            model.train()
            for images, labels in _batches(train_data, recipe, order, run.batch, steps_per_epoch):
                if recipe.augment.crop_padding:
                    images = zoo_data.random_crop(images, recipe.augment.crop_padding, generator=augment)
                if recipe.augment.flip:
                    images = zoo_data.random_flip(images, generator=augment)
                x = zoo_data.normalize(images, mean, std)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = forward(x)
                loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
                loss = loss if penalty is None else loss + penalty()

                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                lr = optimizer.param_groups[0]["lr"]  # of the step just made
                schedule.step()
                run.step += 1
                run.batch += 1
                if ema:
                    ema.update(model, step=run.step)

                # Sums stay on the device; the host looks at them every so often. On a CPU a look costs nothing.
                run.loss_sum += loss.detach().double() * len(labels)
                run.correct += (logits.detach().argmax(dim=1) == labels).sum()
                run.seen += len(labels)
                if device.type == "cpu" or run.step % _SHOW_EVERY == 0 or run.batch == steps_per_epoch:
                    _refuse_non_finite_loss(run, checkpoint_path)
                if run.step % _SHOW_EVERY == 0 or run.batch == steps_per_epoch:
                    show(run)

                reached_max = max_steps is not None and run.step - first_step >= max_steps
                if stop or reached_max or time.monotonic() - last_save > checkpoint_every_s:
                    save()
                    last_save = time.monotonic()
                if stop:
                    raise TrainingInterrupted(
                        f"stopped by {stop[0]} at epoch {epoch + 1}, step {run.step}; saved {checkpoint_path}"
                    )
                if reached_max and run.step < recipe.epochs * steps_per_epoch:
                    return TrainResult(out, False, run.step, run.seconds, None, None, run.history)

            # End of the epoch: errors, one row of the log, a checkpoint.
            row: dict[str, Any] = {
                "epoch": epoch + 1,
                "step": run.step,
                "lr": lr if run.step > first_step else learning_rate(recipe, run.step - 1, steps_per_epoch),
                "train_loss": (run.loss_sum / run.seen).item(),
                "train_acc": 100.0 * (run.correct / run.seen).item(),
            }
            if val_data is not None:
                row["val_error"] = count_correct(published, val_data, mean, std).error
            if recipe.log_test or epoch + 1 == recipe.epochs:
                test = count_correct(published, test_data, mean, std)
                row |= {"test_error": test.error, "test_correct": test.correct, "test_total": test.total}
            row["seconds"] = round(seconds_before + time.monotonic() - started, 1)
            run.history.append(row)
            write_log(out / "train_log.csv", run.history)
            run.epoch, run.batch = epoch + 1, 0
            refine_after(epoch + 1)
            save()
            last_save = time.monotonic()
            _logger.info("%s", "  ".join(f"{key} {row[key]:.6g}" for key in LOG_COLUMNS if key in row))
            if stop and epoch + 1 < recipe.epochs:
                raise TrainingInterrupted(f"stopped by {stop[0]} after epoch {epoch + 1}; saved {checkpoint_path}")

    final = run.history[-1]
    last = Score(final["test_correct"], final["test_total"])
    best, why = best_epoch(run.history, last.total)
    save_weights(out, published, recipe, train_data.classes)
    write_metrics(out, published, recipe, last, best, why, run.seconds, run.sources, device)
    return TrainResult(out, True, run.step, run.seconds, last, best, run.history)


# ---------------------------------------------------------------------------------------------------------------------
# State of a run, and checkpoints


class _Run:
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
        self.sources: list[dict[str, Any]] = [
            {"from_step": 0, "git": source_revision()}
        ]  # the code that made it; a resumed run may have several
        self.history: list[dict[str, Any]] = []
        # sums over the present epoch, () on the device
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

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
        now = self.sources[-1]["git"]  # of the code that goes on
        self.sources = state["sources"]
        if self.sources[-1]["git"] != now:
            self.sources.append({"from_step": self.step, "git": now})
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


def _refuse_non_finite_loss(run: _Run, checkpoint: Path) -> None:
    if not math.isfinite(run.loss_sum.item()):
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "no checkpoint was made yet"
        raise NonFiniteLossError(
            f"the loss is NaN or infinite at step {run.step} (epoch {run.epoch + 1}, batch {run.batch}); {kept}. "
            f"Lower optimizer.lr, or lengthen schedule.warmup"
        )


def _refuse_non_finite(weights: dict[str, Tensor], step: int) -> None:
    """Never save weights that are no good; the check costs a glance at each tensor."""
    bad = [name for name, w in weights.items() if w.is_floating_point() and not bool(torch.isfinite(w).all())]
    if bad:
        raise NonFiniteLossError(
            f"weight {bad[0]} is NaN or infinite after step {step}; the checkpoint was left as it was. "
            f"Lower optimizer.lr, or lengthen schedule.warmup"
        )


# ---------------------------------------------------------------------------------------------------------------------
# Data, signals, display


def _batches(
    train_data: Any, recipe: Recipe, order: torch.Generator, start: int, steps_per_epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches from batch `start` on; none where the epoch was stopped after its last."""
    if start == steps_per_epoch:
        return iter(())
    return iter(
        zoo_data.batches(
            train_data, recipe.batch_size, shuffle=True, drop_last=recipe.drop_last, generator=order, start=start
        )
    )


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """A list that gets the signal's name on Ctrl-C or SIGTERM; the loop looks at it after each step.

    A second signal acts at once. Outside the main thread signals are left alone.
    """
    stop: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        _logger.warning("stopping after this step and saving; once more stops at once, unsaved")
        for each, handler in before.items():
            signal.signal(each, handler)

    for which in (signal.SIGINT, signal.SIGTERM):
        before[which] = signal.signal(which, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _display(
    progress: bool, recipe: Recipe, steps_per_epoch: int, step: int
) -> AbstractContextManager[Callable[[_Run], None]]:
    """A function that shows how the run stands: a progress bar on a terminal, else nothing (the log has the epochs)."""
    if progress:
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            return _progress_bar(console, recipe, steps_per_epoch, step)
    return nullcontext(lambda run: None)


@contextmanager
def _progress_bar(console: Any, recipe: Recipe, steps_per_epoch: int, step: int) -> Iterator[Callable[[_Run], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
    )
    then, at = time.monotonic(), step
    with bar:
        task = bar.add_task(recipe.name, total=recipe.epochs * steps_per_epoch, completed=step, figures="")

        def show(run: _Run) -> None:
            nonlocal then, at
            now = time.monotonic()
            speed = (run.step - at) * recipe.batch_size / max(now - then, 1e-9)
            then, at = now, run.step
            loss, accuracy = (run.loss_sum / run.seen).item(), 100.0 * (run.correct / run.seen).item()
            figures = f"epoch {run.epoch + 1}/{recipe.epochs}  {speed:,.0f} images/s  loss {loss:.4f}  accuracy {accuracy:.2f} %"
            bar.update(task, completed=run.step, figures=figures)

        yield show
