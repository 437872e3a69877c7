"""Training: one readable loop, a log, and checkpoints from which a run goes on as if it had never stopped.

    result = train(load_recipe("gode_mnist_m4.modern"), "hub/gode_mnist_m4.modern")

    torchrun --nproc-per-node=2 -m gode_zoo.train gode_mnist_m4.modern      # the same, shared by several processes

The images lie on the device as uint8 (N, C, H, W); each batch is cropped, flipped and normalised there.
Nothing is selected: the weights of the last epoch are published. With `holdout` the best epoch by the held-out split is
named beside it. The test set is read once, after the last epoch, unless the recipe says `log_test`, and then its
per-epoch figures are information only.

`run_folder.py` says what a run leaves in its folder, which is then a Hub repository in timm's format; `run_state.py` has
what changes while it trains, `distributed.py` the processes.
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
from .augmentation import mirrored_in_epoch, mix, mixing_weight, random_crop, random_cutout, random_flip
from .distributed import World, world
from .evaluate import Score, count_correct
from .families import Categorical, get_family
from .optimizers import make_optimizer
from .outcomes import OutcomeScore, predictors, score_outcomes, with_outcomes
from .penalties import SplinePenalty
from .recipes import Recipe, Refinement, learning_rate
from .run_display import display, stop_signals
from .run_folder import (
    LOG_COLUMNS,
    CheckpointError,
    atomic_write,
    best_epoch,
    read_checkpoint,
    refuse_used_folder,
    remove_leftovers,
    save_initial_kernels,
    save_weights,
    torch_bytes,
    write_log,
    write_metrics,
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
        resume: go on from `out_dir/checkpoint.pt`; on a CPU bit for bit as if never stopped.
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
    with world(device) as processes:
        shown = progress and processes.first
        return _train(recipe, Path(out_dir), processes, data_dir, resume, max_steps, checkpoint_every_s, shown)


def _train(
    recipe: Recipe,
    out: Path,
    processes: World,
    data_dir: str | Path | None,
    resume: bool,
    max_steps: int | None,
    checkpoint_every_s: float,
    progress: bool,
) -> TrainResult:
    checkpoint_path, device = out / "checkpoint.pt", processes.device
    saved = read_checkpoint(checkpoint_path, recipe) if resume else None
    if not resume and processes.first:
        refuse_used_folder(out)
    if recipe.batch_size % processes.size:
        raise ValueError(
            f"recipe {recipe.name}: {processes.size} processes cannot share batch_size = {recipe.batch_size} evenly: start "
            "as many as divide it"
        )
    started = time.monotonic()

    # Model. Seeded first, so that the same recipe gives the same initial weights.
    torch.manual_seed(recipe.seed)
    family = get_family(recipe.family)
    classes = isinstance(family, Categorical)
    family_args = {} if classes else {"family": recipe.family}
    model = timm.create_model(recipe.model, pretrained=False, **recipe.model_args, **family_args).to(device)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    inputs = resolve_input_data_config(model)  # of its pretrained_cfg, for the channels that it has
    mean, std = inputs["mean"], inputs["std"]

    # Data, as uint8 on the device.
    def load(split: str) -> Any:
        data = zoo_data.load_dataset(
            recipe.dataset,
            split=split,
            data_dir=data_dir,
            input_size=tuple(inputs["input_size"]),
            num_classes=model.num_classes if classes else None,  # type: ignore[arg-type]
        )
        return with_outcomes(data, family)

    train_data, test_data, val_data = load("train"), load("test"), None
    if recipe.holdout:
        train_data, val_data = zoo_data.holdout(train_data, recipe.holdout, recipe.seed)
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

    def measure(data: Any, mirror: bool = False) -> Score | OutcomeScore:
        """The published weights' score; each process classifies its share of the images (or scores all outcomes)."""
        measured = published
        if recipe.channels_last:  # as they are when loaded
            measured = copy.deepcopy(published).to(memory_format=torch.contiguous_format)
        if not classes:
            return score_outcomes(family, *predictors(measured, data.to(device), mean, std))
        share = data.subset(torch.arange(processes.rank, len(data), processes.size)).to(device)
        own = torch.tensor(count_correct(measured, share, mean, std, mirror=mirror).correct, device=device)
        return Score(int(processes.total(own)[0]), len(data))

    penalty = SplinePenalty(model, **dataclasses.asdict(recipe.penalty)) if recipe.penalty else None
    if recipe.refine:  # tried beforehand: one that cannot be done would stop the run in its middle
        trial = copy.deepcopy(model)
        for refinement in recipe.refine:
            _refine(trial, refinement)

    # Optimiser, schedule, moving average; two generators, one for the order of the data and one for augmentation.
    optimizer = make_optimizer(model, recipe.optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe, step, steps_per_epoch) / recipe.optimizer.lr
    )
    ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None
    published = ema.module if ema else model
    order = torch.Generator(device).manual_seed(recipe.seed)
    augment = torch.Generator(device).manual_seed(recipe.seed + 2**32)  # a stream that no other seed's order has
    run = RunState(model, optimizer, schedule, ema, order, augment, device)

    def refine_after(epoch: int) -> bool:
        """Whether the model is another now."""
        due = [refinement for refinement in recipe.refine if refinement.epoch == epoch]
        for refinement in due:
            _refine(model, refinement, optimizer)
            if ema:
                _refine(ema.module, refinement)
        return bool(due)

    def wrapped() -> Callable[[Tensor], Tensor]:
        """The model as it is trained: shared by the processes, compiled where the recipe says so and there is a GPU."""
        shared = DistributedDataParallel(model) if processes.size > 1 else model
        if not recipe.compile or device.type == "cpu":  # there it gains nothing: docs/benchmark.md
            return shared
        graphs = processes.size == 1
        return torch.compile(shared, dynamic=False, mode="reduce-overhead" if graphs else None)  # that is CUDA graphs

    if saved is not None:
        for epoch in range(saved["epoch"]):
            refine_after(epoch + 1)
        run.restore(saved, steps_per_epoch, checkpoint_path)
    elif processes.first:
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "recipe.yaml", lambda file: file.write(recipe.to_yaml().encode()))
        save_initial_kernels(out, model)

    def save() -> None:
        run.seconds = seconds_before + time.monotonic() - started
        if not processes.first:
            return
        state = run.state(recipe, steps_per_epoch)
        refuse_non_finite_weights(state["model"], run.step)
        atomic_write(checkpoint_path, lambda file: file.write(torch_bytes(state)))

    if resume and processes.first:
        remove_leftovers(out)
        write_log(out / "train_log.csv", run.history)  # without the rows after the checkpoint
    seconds_before, last_save, first_step = run.seconds, time.monotonic(), run.step
    forward = wrapped()
    bf16, stopping = recipe.amp == "bf16", False

    with stop_signals() as stop, display(progress, recipe, steps_per_epoch, run.step) as show:
        for epoch in range(run.epoch, recipe.epochs):
            if run.batch == 0:  # not in the middle of an epoch
                run.order_at_epoch_start = order.get_state()
                run.loss_sum.zero_(), run.correct.zero_(), run.seen.zero_()
            model.train()
            epoch_started, epoch_from = time.monotonic(), run.step
            for images, labels in _batches(train_data, recipe, order, epoch, run.batch, steps_per_epoch):
                if recipe.augment.crop_padding:
                    images = random_crop(images, recipe.augment.crop_padding, generator=augment)
                if recipe.augment.flip:
                    images = random_flip(images, generator=augment)
                images, own_labels = processes.share(images, labels)
                x = zoo_data.normalize(images, mean, std).to(memory_format=layout)
                targets = own_labels
                if recipe.augment.cutout:
                    x = random_cutout(x, recipe.augment.cutout, generator=augment)
                if recipe.augment.mixup:
                    weight = mixing_weight(recipe.augment.mixup, recipe.seed, run.step)
                    x, targets = mix(x, weight), mix(torch.eye(model.num_classes, device=device)[own_labels], weight)  # type: ignore[call-overload]
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = forward(x)
                if classes:
                    loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
                else:
                    loss = family.nll(own_labels, logits)
                loss = loss if penalty is None else loss + penalty()

                optimizer.zero_grad(set_to_none=True)
                # The mean over the global batch: gradients are averaged over shares, which may differ in the last batch.
                (loss * (len(own_labels) * processes.size / len(labels))).backward()
                optimizer.step()
                lr = optimizer.param_groups[0]["lr"]  # of the step just made
                schedule.step()
                run.step += 1
                run.batch += 1
                if ema:
                    ema.update(model, step=run.step)

                # Sums stay on the device; the host looks at them every so often. On a CPU a look costs nothing.
                right = (logits.detach().argmax(dim=1) == own_labels).sum()
                loss_here, right = processes.total(loss.detach().double() * len(own_labels), right)
                run.loss_sum += loss_here
                run.correct += right
                run.seen += len(labels)
                looking = run.step % _SHOW_EVERY == 0 or run.batch == steps_per_epoch
                if device.type == "cpu" or looking:
                    refuse_non_finite_loss(run, checkpoint_path)
                    stopping = processes.any(bool(stop))  # all stop after the same step
                if looking:
                    show(run)

                reached_max = max_steps is not None and run.step - first_step >= max_steps
                if stopping or reached_max or time.monotonic() - last_save > checkpoint_every_s:
                    save()
                    last_save = time.monotonic()
                if stopping:
                    raise TrainingInterrupted(
                        f"stopped by {_by(stop)} at epoch {epoch + 1}, step {run.step}; saved {checkpoint_path}"
                    )
                if reached_max and run.step < recipe.epochs * steps_per_epoch:
                    return TrainResult(out, False, run.step, run.seconds, None, None, run.history)

            # End of the epoch: errors, one row of the log, a checkpoint.
            steps_made = max(run.step - epoch_from, 1)
            row: dict[str, Any] = {
                "epoch": epoch + 1,
                "step": run.step,
                "lr": lr if run.step > first_step else learning_rate(recipe, run.step - 1, steps_per_epoch),
                "train_loss": (run.loss_sum / run.seen).item(),
                **({"train_acc": 100.0 * (run.correct / run.seen).item()} if classes else {}),
                "step_seconds": (time.monotonic() - epoch_started) / steps_made,
            }
            if val_data is not None:
                row["val_error"] = measure(val_data).error
            if recipe.log_test or epoch + 1 == recipe.epochs:
                row |= measure(test_data).row("test")
            row["seconds"] = round(seconds_before + time.monotonic() - started, 1)
            run.history.append(row)
            run.epoch, run.batch = epoch + 1, 0
            if refine_after(epoch + 1):
                forward = wrapped()
            save()  # before the log, which a resumed run writes again from the checkpoint
            last_save = time.monotonic()
            if processes.first:
                write_log(out / "train_log.csv", run.history)
                _logger.info("%s", "  ".join(f"{key} {row[key]:.6g}" for key in LOG_COLUMNS if key in row))
            if epoch + 1 < recipe.epochs and processes.any(bool(stop)):
                raise TrainingInterrupted(f"stopped by {_by(stop)} after epoch {epoch + 1}; saved {checkpoint_path}")

    final = run.history[-1]
    last = (Score if classes else OutcomeScore).from_row(final, "test")
    best, why = best_epoch(run.history)
    if not family.discrete:  # of counts the dispersion shapes the likelihood, and stays as the recipe gives it
        unseen = val_data if val_data is not None else train_data
        y, eta = predictors(published, unseen.to(device), mean, std)
        published.family = family.with_dispersion(family.estimate_dispersion(y, eta))  # type: ignore[assignment]
    further = {}  # for the card: the headline is without test-time augmentation
    if classes and (recipe.augment.flip or recipe.augment.alternating_flip):
        further["mirrored"] = measure(test_data, mirror=True).to_dict()
    if processes.first:
        save_weights(out, published, recipe, train_data.classes)
        write_metrics(out, published, recipe, last, best, why, run.seconds, run.sources, device, further)
    return TrainResult(out, True, run.step, run.seconds, last, best, run.history)


def _by(stop: list[str]) -> str:
    return stop[0] if stop else "a signal to another process"


def _refine(model: torch.nn.Module, refinement: Refinement, optimizer: torch.optim.Optimizer | None = None) -> None:
    if refinement.num_basis is not None:
        refine_(model, refinement.num_basis, optimizer)
    if refinement.num_steps is not None:
        regrid_(model, refinement.num_steps)


def _batches(
    train_data: Any, recipe: Recipe, order: torch.Generator, epoch: int, start: int, steps_per_epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches from batch `start` on; none where the epoch was stopped after its last."""
    if start == steps_per_epoch:
        return iter(())
    mirrored = None
    if recipe.augment.alternating_flip:
        mirrored = mirrored_in_epoch(len(train_data), epoch, recipe.seed, train_data.images.device)
    return iter(
        zoo_data.batches(
            train_data,
            recipe.batch_size,
            shuffle=True,
            drop_last=recipe.drop_last,
            generator=order,
            start=start,
            mirrored=mirrored,
        )
    )


if __name__ == "__main__":  # as torchrun starts it: the same as `gode-zoo train`, where process 0 speaks for all
    from .cli import main

    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    sys.argv[1:1] = ["train"]
    main()
