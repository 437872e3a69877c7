"""Fine-tuning: a model of the zoo learns other images, and a page shows what came of it.

    result = finetune("gode_mnist_m4", "photos/", "runs/photos")
    result.error, result.out_dir / "report.html"
    finetune("gode_mnist_m4", "counts.csv", "runs/counts", family="poisson")    # outcomes instead of classes

In this order, and nothing is written before the data are known to be fit:
    the images are found, split (seeded, by class where there are any, unless they are split) and every one of them decoded
    the model takes over the weights, its first convolution and classifier fitted to channels and classes
    a short range test finds the learning rate
    SGD with Nesterov momentum trains, its rate falling by a cosine, more slowly in lower layers; weights are averaged
    after each epoch the averaged weights are measured on the validation images; the best are kept
    at the end these are measured on the test images, where there are any, and else stand with the validation error,
    which is then somewhat too good, for they were chosen by it

The folder is that of a run (`run_folder.py`) with split.csv, lr_range.csv and report.html beside. The same seed gives the
same run, and a run that was stopped or killed goes on with `resume` as if it had not been: on a CPU bit for bit.
`finetuning/targets.py` says how outcomes of a family differ from classes; for "error" read the mean deviance then.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .families import Categorical, Family
from .finetuning.data import FinetuneData, load_images
from .finetuning.job import FinetuneJob, FinetuneResult
from .finetuning.model import FREEZE, find_start, make_model
from .finetuning.model import freeze as _freeze
from .finetuning.out_of_memory import is_out_of_memory
from .finetuning.recipe import FinetuneRecipe, automatic_batch_size, automatic_ema_decay, automatic_precision
from .finetuning.splits import split_table
from .finetuning.targets import find_targets
from .folder_lock import locked_folder
from .images.sources import find_images
from .mixed_precision import any_chip_bf16
from .outcomes import image_family
from .recipes import Augment, Optimizer, Schedule
from .run_folder import CheckpointError, atomic_write, refuse_used_folder

__all__ = ["FinetuneResult", "finetune"]

_logger = logging.getLogger(__name__)

_WEIGHT_DECAY = 5e-4


def finetune(
    model: str,
    data: str | Path,
    out_dir: str | Path,
    *,
    epochs: int = 30,
    batch_size: int | None = None,
    lr: float | None = None,
    family: str | Mapping[str, Any] | Family = "categorical",
    freeze: str = "none",
    layer_decay: float | None = None,
    image_size: int | None = None,
    val_fraction: float = 0.2,
    patience: int = 10,
    balanced: bool = False,
    flip: bool = False,
    pretrained: bool = True,
    skip_broken: bool = False,
    amp: str | None = None,
    seed: int = 0,
    resume: bool = False,
    tensorboard: bool = False,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    max_steps: int | None = None,
    checkpoint_every_s: float = 60.0,
    progress: bool = True,
    command: str | None = None,
) -> FinetuneResult:
    """Fine-tune a model of the zoo on a data set, and leave a Hub folder with report.html in `out_dir`.

    Args:
        model: `arch`, `arch.tag`, `hf-hub:ORG/NAME`, or the folder of a finished run.
        data: a folder or tar of class folders, a CSV of paths and labels, or a name of timm's (`torch/…`, `hfds/…`).
        out_dir: made if need be; a folder that already holds a run is refused unless `resume`.
        epochs: at most so many.
        batch_size: default a power of two near a tenth of the training images, 8 to 64.
        lr: peak of the learning rate; default by a range test.
        family: of what is learned: "categorical" for classes; or a family of outcomes (poisson, gaussian …), as
            `get_family` takes it, and labels are numbers then (of bernoulli two classes will do).
        freeze: "none"; "stem" keeps the first convolutions as they are; "all-but-head" trains the classifier alone.
        layer_decay: factor on the learning rate from each layer to the one below, more than 0 and at most 1; default
            0.75, and 1 from random weights.
        image_size: height and width to bring images to; default the model's.
        val_fraction: of the training images, held out where the data have no validation split.
        patience: epochs without a better validation error after which it ends; 0 for never.
        balanced: draw each class equally often; not for outcomes.
        flip: mirror images at random; for digits and letters wrong.
        pretrained: False trains from random weights, for comparison.
        skip_broken: leave out images that cannot be read, instead of an error that names them.
        amp: "bf16" or "none"; default bf16 where the chip computes in it.
        seed: of the split, the classifier, the order and the augmentation.
        resume: go on from the folder's checkpoint, with the same arguments.
        tensorboard: also write TensorBoard's logs, into `out_dir/tensorboard`.
        data_dir: where datasets are kept.
        device: default CUDA where there is one, else the CPU.
        max_steps: end this call after so many updates, with a checkpoint.
        checkpoint_every_s: seconds between checkpoints within an epoch; each epoch ends with one as well.
        progress: show progress bars, where stderr is a terminal.
        command: to name in the report as what made it; default a call of this function.

    Raises:
        ValueError: an argument that cannot be right, data that cannot be used (DataError).
        WeightsError: no such weights, or not those that were published.
        CheckpointError: nothing to resume, a damaged checkpoint or one of other arguments, or a folder that has a run.
        FolderInUseError: another run is at work in the folder.
        NonFiniteLossError: the loss became NaN or infinite; the last good checkpoint is kept.
        OutOfMemoryHint: with the batch size that fits.
        TrainingInterrupted: Ctrl-C or SIGTERM, after saving a checkpoint.
    """
    _check_arguments(epochs, batch_size, lr, freeze, layer_decay, image_size, patience, amp, max_steps)
    learned = image_family(family, 1)
    outcomes = not isinstance(learned, Categorical)
    if balanced and outcomes:
        raise ValueError(
            f"balanced = True draws classes equally often, but family {learned.name} has none: leave it out"
        )
    layer_decay = layer_decay or (0.75 if pretrained else 1.0)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = Path(out_dir)
    summary_writer = _tensorboard() if tensorboard else None
    start = find_start(model, pretrained=pretrained, outcomes=outcomes)
    source = find_images(data, data_dir=data_dir, outcomes=outcomes)
    targets = find_targets(learned, source)
    parts = targets.split(source, val_fraction, seed)
    if resume and not out.is_dir():
        raise CheckpointError(f"{out}: there is no such folder to resume from: check it, or leave --resume out")
    size = image_size or start.image_size
    started = time.monotonic()
    with locked_folder(out):
        if not resume:
            refuse_used_folder(out)
        _refuse_other_split(out, split_table(parts)) if resume else None
        images = load_images(source, parts, targets, start.channels, size, skip_broken=skip_broken, progress=progress)
        _logger.info("%s", _describe(source.name, images))
        _logger.info("%s", targets.describe(parts["train"], balanced))
        torch.manual_seed(seed)
        net = make_model(start, images.targets, images.channels, size, pretrained=pretrained).to(where)
        _freeze(net, freeze)
        _refuse_full_disk(out, net)
        batch = min(batch_size or automatic_batch_size(len(images.train)), len(images.train))
        steps = epochs * math.ceil(len(images.train) / batch)
        recipe = FinetuneRecipe(
            model=start.arch,
            tag="finetuned",
            dataset=source.name,
            epochs=epochs,
            batch_size=batch,
            optimizer=Optimizer(lr=lr or 1.0, nesterov=True, weight_decay=_WEIGHT_DECAY),
            schedule=Schedule(name="cosine", warmup=0.1),
            augment=Augment(crop_padding=0 if outcomes else max(size // 8, 1), flip=flip),
            ema_decay=automatic_ema_decay(steps),
            drop_last=False,
            seed=seed,
            amp=amp or automatic_precision(where),
            holdout=0.0 if source.of("val") else val_fraction,
            family=targets.recipe_family,
            model_args={"num_classes": targets.num_outputs, "in_chans": images.channels},
            finetuned_from=start.source,
            freeze=freeze,
            layer_decay=layer_decay,
            balanced=balanced,
            patience=patience,
            image_size=size,
        )
        job = FinetuneJob(recipe, out, net, images, where, progress)
        with any_chip_bf16(where, recipe.amp):
            if lr is None:
                job.find_lr(resume)
            if resume and not (out / "checkpoint.pt").exists():
                resume = False  # it was stopped before the first
            if not resume:
                atomic_write(out / "split.csv", lambda file: file.write(split_table(parts).encode()))
            try:
                return job.train(
                    resume, max_steps, checkpoint_every_s, started, summary_writer, command or _call(model, data, out)
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise job.hint(error) from error


def _describe(name: str, data: FinetuneData) -> str:
    test = f", {len(data.test):,} to test" if data.test else ""
    classes = f"{len(data.targets.classes):,} classes; " if data.targets.classes else ""
    return f"{name}: {classes}{len(data.train):,} images to train, {len(data.val):,} to validate{test}"


def _call(model: str, data: str | Path, out: Path) -> str:
    return f"gode_zoo.finetune.finetune({model!r}, {str(data)!r}, {str(out)!r}, …)"


def _check_arguments(
    epochs: int,
    batch_size: int | None,
    lr: float | None,
    freeze: str,
    layer_decay: float | None,
    image_size: int | None,
    patience: int,
    amp: str | None,
    max_steps: int | None,
) -> None:
    def need(ok: bool, name: str, value: object, allowed: str) -> None:
        if not ok:
            raise ValueError(f"{name} = {value!r} is not possible (allowed: {allowed}): change it")

    need(epochs >= 1, "epochs", epochs, "1 or more")
    need(batch_size is None or batch_size >= 1, "batch_size", batch_size, "1 or more")
    need(lr is None or (lr > 0.0 and math.isfinite(lr)), "lr", lr, "more than 0, or auto for a range test")
    need(freeze in FREEZE, "freeze", freeze, ", ".join(FREEZE))
    need(layer_decay is None or 0.0 < layer_decay <= 1.0, "layer_decay", layer_decay, "more than 0, at most 1")
    need(image_size is None or 8 <= image_size <= 1024, "image_size", image_size, "8 to 1024 pixels")
    need(patience >= 0, "patience", patience, "0 for never, or more")
    need(amp in (None, "none", "bf16"), "amp", amp, "none, bf16")
    need(max_steps is None or max_steps >= 1, "max_steps", max_steps, "1 or more")


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard is missing: install the extra: pip install 'gode_zoo[tensorboard]'") from error
    return SummaryWriter


def _refuse_other_split(out: Path, table: str) -> None:
    file = out / "split.csv"
    if file.exists() and file.read_bytes() != table.encode():
        raise CheckpointError(
            f"{out}: its run was made of other images, or another split (see split.csv): give the same data, seed and "
            "fraction, or choose a new folder (--out)"
        )


def _refuse_full_disk(out: Path, model: nn.Module) -> None:
    """Refuse before the work what would fail after it: the checkpoint has five times the weights."""
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    need, free = 7 * size + (4 << 20), shutil.disk_usage(out).free
    if free < need:
        raise OSError(
            f"{out}: the disk has {free / 2**20:,.0f} MiB free, the run needs {need / 2**20:,.0f}: free some, or choose "
            "another folder (--out)"
        )
