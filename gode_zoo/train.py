"""Training: one readable loop, a log, and checkpoints from which a run goes on as if it had never stopped.

    result = train(load_recipe("gode_mnist_m4.modern"), "hub/gode_mnist_m4.modern")

    torchrun --nproc-per-node=2 -m gode_zoo.train gode_mnist_m4.modern      # the same, shared by several processes

The images lie on the device as uint8 (N, C, H, W); each batch is cropped, flipped and normalised there.
Nothing is selected: the weights of the last epoch are published. With `holdout` the best epoch by the held-out split is
named beside it. The test set is read once, after the last epoch, unless the recipe says `log_test`, and then its
per-epoch figures are information only.

`run_folder.py` says what a run leaves in its folder, which is then a Hub repository in timm's format; `metrics.py` writes its
errors, `run_state.py` has what changes while it trains, `distributed.py` the processes.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from . import data as zoo_data
from .augmentation import mirrored_in_epoch, mix, mixing_weight, move, random_cutout
from .distributed import World, world
from .evaluate import Score, count_correct
from .families import Categorical, get_family
from .metrics import best_epoch, function_evaluations, write_metrics
from .mixed_precision import any_chip_bf16
from .optimizers import make_optimizer
from .outcomes import OutcomeScore, predictors, score_outcomes, with_outcomes
from .penalties import SplinePenalty
from .recipes import Recipe, Refinement, learning_rate
from .run_display import display, stop_signals
from .run_folder import (
    LOG_COLUMNS,
    CheckpointError,
    atomic_write,
    read_checkpoint,
    refuse_used_folder,
    remove_leftovers,
    save_initial_kernels,
    save_weights,
    torch_bytes,
    write_log,
)
from .run_state import NonFiniteLossError, RunState, refuse_non_finite_loss, refuse_non_finite_weights
from .surgery import refine_, regrid_

__all__ = ["CheckpointError", "NonFiniteLossError", "TrainResult", "TrainingInterrupted", "train"]

_logger = logging.getLogger(__name__)

_SHOW_EVERY = 20  # steps between looks at the running sums; on a GPU each look waits for the device


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
    last: Score | OutcomeScore | None
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
        device: default CUDA where there is one, else the CPU. Each process that torchrun started takes a GPU of its own.
        resume: go on from `out_dir/checkpoint.pt`; on a CPU of the same kind bit for bit as if never stopped.
        max_steps: end this call after so many updates, with a checkpoint.
        checkpoint_every_s: seconds between checkpoints within an epoch; each epoch ends with one as well.
        progress: show a progress bar, where stderr is a terminal.

    Raises:
        CheckpointError: nothing to resume, a checkpoint of another recipe or a damaged one, or a folder in use.
        NonFiniteLossError: the loss became NaN or infinite.
        TrainingInterrupted: Ctrl-C or SIGTERM, after saving a checkpoint.
        ValueError: a batch that the processes cannot share evenly, or that is larger than the training set.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps = {max_steps} must be 1 or more, or None for the whole recipe")
    out = Path(out_dir)
    with world(device) as processes:
        saved = read_checkpoint(out / "checkpoint.pt", recipe) if resume else None
        if not resume and processes.first:
            refuse_used_folder(out)
        if recipe.batch_size % processes.size:
            raise ValueError(
                f"recipe {recipe.name}: {processes.size} processes cannot share batch_size = {recipe.batch_size} evenly: start "
                "as many as divide it"
            )
        job = _TrainingJob(recipe, out, processes, data_dir)
        job.begin(saved)
        finished = job.run_epochs(max_steps, checkpoint_every_s, progress and processes.first)
        last, best = job.publish() if finished else (None, None)
    return TrainResult(out, finished, job.run.step, job.run.seconds, last, best, job.run.history)


class _TrainingJob:
    """One recipe in training: its data, model and optimiser, and what is done with them.

    Attributes:
        model: that is trained.
        published: that is measured and saved: the moving average where the recipe has one, else the model.
        run: what changes, as it goes into a checkpoint.
    """

    def __init__(self, recipe: Recipe, out: Path, processes: World, data_dir: str | Path | None) -> None:
        self.recipe, self.out, self.processes, self.device = recipe, out, processes, processes.device
        self.checkpoint_path, self.started = out / "checkpoint.pt", time.monotonic()

        # Model. Seeded first, so that the same recipe gives the same initial weights.
        torch.manual_seed(recipe.seed)
        self.family = get_family(recipe.family)
        self.classes = isinstance(self.family, Categorical)
        family_args = {} if self.classes else {"family": recipe.family}
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model: Any = timm.create_model(recipe.model, pretrained=False, **recipe.model_args, **family_args)
        self.model = self.model.to(self.device).to(memory_format=self.layout)

        self._load_data(data_dir)
        self.penalty = SplinePenalty(self.model, **dataclasses.asdict(recipe.penalty)) if recipe.penalty else None
        if recipe.refine:  # tried beforehand: one that cannot be done would stop the run in its middle
            trial = copy.deepcopy(self.model)
            for refinement in recipe.refine:
                _refine(trial, refinement)

        # Optimiser, schedule, moving average; two generators, one for the order of the data and one for augmentation.
        optimizer = make_optimizer(self.model, recipe.optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(recipe, step, self.steps_per_epoch) / recipe.optimizer.lr
        )
        ema = ModelEmaV3(self.model, decay=recipe.ema_decay) if recipe.ema_decay else None
        self.published: Any = ema.module if ema else self.model
        order = torch.Generator(self.device).manual_seed(recipe.seed)
        apart = recipe.seed + 2**32  # a stream that no other seed's order has
        augment = torch.Generator(self.device).manual_seed(apart)
        self.run = RunState(self.model, optimizer, schedule, ema, order, augment, self.device)

    def _load_data(self, data_dir: str | Path | None) -> None:
        """The splits, those for training as uint8 on the device."""
        recipe = self.recipe
        inputs = resolve_input_data_config(self.model)  # of its pretrained_cfg, for the channels that it has
        self.mean, self.std = inputs["mean"], inputs["std"]

        def load(split: str) -> Any:
            data = zoo_data.load_dataset(
                recipe.dataset,
                split=split,
                data_dir=data_dir,
                input_size=tuple(inputs["input_size"]),
                num_classes=self.model.num_classes if self.classes else None,
            )
            return with_outcomes(data, self.family)

        train_data, self.test_data, self.val_data = load("train"), load("test"), None
        if recipe.holdout:
            train_data, self.val_data = zoo_data.holdout(train_data, recipe.holdout, recipe.seed)
        self.train_data = train_data.to(self.device)
        if self.train_data.classes != self.test_data.classes:
            raise zoo_data.DataError(
                f"{self.train_data.source} has classes {', '.join(self.train_data.classes)}, {self.test_data.source} has "
                f"{', '.join(self.test_data.classes)}: both must have the same class folders"
            )
        images = len(self.train_data)
        self.steps_per_epoch = images // recipe.batch_size if recipe.drop_last else -(-images // recipe.batch_size)
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"recipe {recipe.name}: batch_size = {recipe.batch_size} is more than the {images} training images "
                f"and drop_last leaves no batch: make batch_size smaller or drop_last false"
            )

    def begin(self, saved: dict[str, Any] | None) -> None:
        """Take up a checkpoint, as read by `read_checkpoint`, or start the folder of a new run."""
        if saved is not None:
            for epoch in range(saved["epoch"]):
                self._refine_after(epoch + 1)
            self.run.restore(saved, self.steps_per_epoch, self.checkpoint_path)
            if self.processes.first:
                remove_leftovers(self.out)
                write_log(self.out / "train_log.csv", self.run.history)  # without the rows after the checkpoint
        elif self.processes.first:
            self.out.mkdir(parents=True, exist_ok=True)
            atomic_write(self.out / "recipe.yaml", lambda file: file.write(self.recipe.to_yaml().encode()))
            save_initial_kernels(self.out, self.model)
        self.started -= self.run.seconds  # those before it was resumed count

    def run_epochs(self, max_steps: int | None, checkpoint_every_s: float, progress: bool) -> bool:
        """Train to the end of the recipe, with a checkpoint after each epoch; False where `max_steps` came before.

        Raises:
            NonFiniteLossError, TrainingInterrupted: see `train`.
        """
        recipe, run, processes = self.recipe, self.run, self.processes
        last_save, first_step = time.monotonic(), run.step
        forward, stopping = self._wrapped(), False
        with (
            any_chip_bf16(self.device, recipe.amp),
            stop_signals() as stop,
            display(progress, recipe, self.steps_per_epoch, run.step) as show,
        ):
            for epoch in range(run.epoch, recipe.epochs):
                if run.batch == 0:  # not in the middle of an epoch
                    run.start_epoch()
                self.model.train()
                epoch_started, epoch_from = time.monotonic(), run.step
                for images, labels in self._batches(epoch):
                    self._update(forward, images, labels)

                    # Sums stay on the device; the host looks at them every so often. On a CPU a look costs nothing.
                    looking = run.step % _SHOW_EVERY == 0 or run.batch == self.steps_per_epoch
                    if self.device.type == "cpu" or looking:
                        refuse_non_finite_loss(run, self.checkpoint_path)
                        stopping = processes.any(bool(stop))  # all stop after the same step
                    if looking:
                        show(run)

                    reached_max = max_steps is not None and run.step - first_step >= max_steps
                    if stopping or reached_max or time.monotonic() - last_save > checkpoint_every_s:
                        self._save()
                        last_save = time.monotonic()
                    if stopping:
                        raise TrainingInterrupted(
                            f"stopped by {_by(stop)} at epoch {epoch + 1}, step {run.step}; saved {self.checkpoint_path}"
                        )
                    if reached_max and run.step < recipe.epochs * self.steps_per_epoch:
                        return False

                step_seconds = (time.monotonic() - epoch_started) / max(run.step - epoch_from, 1)
                run.history.append(self._log_row(epoch + 1, step_seconds))
                run.epoch, run.batch = epoch + 1, 0
                if self._refine_after(epoch + 1):
                    forward = self._wrapped()
                self._save()  # before the log, which a resumed run writes again from the checkpoint
                last_save = time.monotonic()
                if processes.first:
                    row = run.history[-1]
                    write_log(self.out / "train_log.csv", run.history)
                    _logger.info("%s", "  ".join(f"{key} {row[key]:.6g}" for key in LOG_COLUMNS if key in row))
                if epoch + 1 < recipe.epochs and processes.any(bool(stop)):
                    raise TrainingInterrupted(
                        f"stopped by {_by(stop)} after epoch {epoch + 1}; saved {self.checkpoint_path}"
                    )
        return True

    def publish(self) -> tuple[Score | OutcomeScore, dict[str, Any] | None]:
        """Save the weights of the last epoch with their metrics; returns their score and what the best epoch was."""
        history, family = self.run.history, self.family
        last = (Score if self.classes else OutcomeScore).from_row(history[-1], "test")
        best = best_epoch(history)
        if not family.discrete:  # of counts the dispersion shapes the likelihood, and stays as the recipe gives it
            unseen = self.val_data if self.val_data is not None else self.train_data
            y, eta = predictors(self.published, unseen.to(self.device), self.mean, self.std)
            self.published.family = family.with_dispersion(family.estimate_dispersion(y, eta))
        further: dict[str, Any] = {}
        if self.classes and (self.recipe.augment.flip or self.recipe.augment.alternating_flip):
            # for the card: the headline is without test-time augmentation
            further["mirrored"] = self._measure(self.test_data, mirror=True).to_dict()
        if self.processes.first:
            further["nfe"] = function_evaluations(self.published, self.test_data.images, self.mean, self.std)
            save_weights(self.out, self.published, self.recipe, self.train_data.classes)
            write_metrics(self.out, self.published, self.recipe, self.run, last, best, further)
        return last, best[0]

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's batches that are still to do; none where it was stopped after its last."""
        recipe, data = self.recipe, self.train_data
        if self.run.batch == self.steps_per_epoch:
            return iter(())
        mirrored = None
        if recipe.augment.alternating_flip:
            mirrored = mirrored_in_epoch(len(data), epoch, recipe.seed, data.images.device)
        return iter(
            zoo_data.batches(
                data,
                recipe.batch_size,
                shuffle=True,
                drop_last=recipe.drop_last,
                generator=self.run.order,
                start=self.run.batch,
                mirrored=mirrored,
            )
        )

    def _update(self, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
        """One step of the optimiser on a batch, of which each process takes its share."""
        recipe, run, processes = self.recipe, self.run, self.processes
        x, own_labels, targets = self._augmented(images, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.amp == "bf16"):
            logits = forward(x)
        if self.classes:
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
        else:
            loss = self.family.nll(own_labels, logits)
        loss = loss if self.penalty is None else loss + self.penalty()

        run.optimizer.zero_grad(set_to_none=True)
        # The mean over the global batch: gradients are averaged over shares, which may differ in the last batch.
        (loss * (len(own_labels) * processes.size / len(labels))).backward()
        run.optimizer.step()
        run.schedule.step()
        run.step += 1
        run.batch += 1
        if run.ema:
            run.ema.update(self.model, step=run.step)

        right = (logits.detach().argmax(dim=1) == own_labels).sum()
        loss_here, right = processes.total(loss.detach().double() * len(own_labels), right)
        run.loss_sum += loss_here
        run.correct += right
        run.seen += len(labels)

    def _augmented(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of this process's share of a batch: normalised images, labels, and targets, which mixup makes of these."""
        settings, generator = self.recipe.augment, self.run.augment
        images, labels = self.processes.share(move(images, settings, generator), labels)
        x = zoo_data.normalize(images, self.mean, self.std).to(memory_format=self.layout)
        if settings.cutout:
            x = random_cutout(x, settings.cutout, generator=generator)
        if not settings.mixup:
            return x, labels, labels
        weight = mixing_weight(settings.mixup, self.recipe.seed, self.run.step)
        one_hot = torch.eye(self.model.num_classes, device=self.device)[labels]
        return mix(x, weight), labels, mix(one_hot, weight)

    def _log_row(self, epoch: int, step_seconds: float) -> dict[str, Any]:
        """The log's row of an epoch just done, with the errors of its weights."""
        run = self.run
        row: dict[str, Any] = {"epoch": epoch, "step": run.step}
        row["lr"] = learning_rate(self.recipe, run.step - 1, self.steps_per_epoch)
        row["train_loss"] = (run.loss_sum / run.seen).item()
        if self.classes:
            row["train_acc"] = 100.0 * (run.correct / run.seen).item()
        row["step_seconds"] = step_seconds
        if self.val_data is not None:
            row["val_error"] = self._measure(self.val_data).error
        if self.recipe.log_test or epoch == self.recipe.epochs:
            row |= self._measure(self.test_data).row("test")
        row["seconds"] = round(self._seconds(), 1)
        return row

    def _measure(self, data: Any, mirror: bool = False) -> Score | OutcomeScore:
        """The published weights' score; each process classifies its share of the images (or scores all outcomes)."""
        measured, processes = self.published, self.processes
        if self.recipe.channels_last:  # as they are when loaded
            measured = copy.deepcopy(measured).to(memory_format=torch.contiguous_format)
        if not self.classes:
            return score_outcomes(self.family, *predictors(measured, data.to(self.device), self.mean, self.std))
        share = data.subset(torch.arange(processes.rank, len(data), processes.size)).to(self.device)
        correct = count_correct(measured, share, self.mean, self.std, mirror=mirror).correct
        return Score(int(processes.total(torch.tensor(correct, device=self.device))[0]), len(data))

    def _refine_after(self, epoch: int) -> bool:
        """Whether the model is another now."""
        due = [refinement for refinement in self.recipe.refine if refinement.epoch == epoch]
        for refinement in due:
            _refine(self.model, refinement, self.run.optimizer)
            if self.run.ema:
                _refine(self.run.ema.module, refinement)
        return bool(due)

    def _wrapped(self) -> Callable[[Tensor], Tensor]:
        """The model as it is trained: shared by the processes, compiled where the recipe says so and there is a GPU."""
        model: Callable[[Tensor], Tensor] = self.model
        shared = DistributedDataParallel(self.model) if self.processes.size > 1 else model
        if not self.recipe.compile or self.device.type == "cpu":  # there it gains nothing: docs/benchmark.md
            return shared
        graphs = self.processes.size == 1
        return torch.compile(shared, dynamic=False, mode="reduce-overhead" if graphs else None)  # that is CUDA graphs

    def _seconds(self) -> float:
        """Of this run so far."""
        return time.monotonic() - self.started

    def _save(self) -> None:
        self.run.seconds = self._seconds()
        if not self.processes.first:
            return
        state = self.run.state(self.recipe, self.steps_per_epoch)
        refuse_non_finite_weights(state["model"], self.run.step)
        atomic_write(self.checkpoint_path, lambda file: file.write(torch_bytes(state)))


def _by(stop: list[str]) -> str:
    return stop[0] if stop else "a signal to another process"


def _refine(model: torch.nn.Module, refinement: Refinement, optimizer: torch.optim.Optimizer | None = None) -> None:
    if refinement.num_basis is not None:
        refine_(model, refinement.num_basis, optimizer)
    if refinement.num_steps is not None:
        regrid_(model, refinement.num_steps)


if __name__ == "__main__":  # as torchrun starts it: the same as `gode-zoo train`, where process 0 speaks for all
    from .cli import main

    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    sys.argv[1:1] = ["train"]
    main()
