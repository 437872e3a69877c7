"""The files of a training run: read, refused, and written so that a crash leaves the old file or the new one.

A run's folder is in the end a Hub repository in timm's format:
    recipe.yaml        the recipe with every default written out
    train_log.csv      one row an epoch
    checkpoint.pt      where to go on from (model, optimiser, schedule, EMA, random generators, position in the data)
    initial_kernels.safetensors    one kernel of each convolution of the block, before training
    model.safetensors, config.json    the weights (of the moving average, where there is one), as timm loads them
    metrics.json       errors and how they were obtained (`metrics.py`)
"""

import copy
import csv
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save, save_file
from timm.models import save_for_hf
from torch import nn

from .families import Categorical
from .recipes import Recipe

__all__ = [
    "CHECKPOINT_FORMAT",
    "LOG_COLUMNS",
    "CheckpointError",
    "atomic_write",
    "read_checkpoint",
    "recipe_sha256",
    "refuse_used_folder",
    "remove_leftovers",
    "save_initial_kernels",
    "save_weights",
    "torch_bytes",
    "write_log",
]

CHECKPOINT_FORMAT = 1
LOG_COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_acc",
    "val_error",
    "val_loss",
    "test_error",
    "step_seconds",
    "seconds",
)


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another run, or a folder that already holds a run."""


def recipe_sha256(recipe: Recipe) -> str:
    """sha256 of the resolved recipe, which is also that of `recipe.yaml` in the run's folder."""
    return hashlib.sha256(recipe.to_yaml().encode()).hexdigest()


def atomic_write(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that at any moment `path` is the old content or the new, whole: beside it, then renamed over.

    Raises:
        OSError: it cannot be written; `path` is then as it was before.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); it is as it was before. Free space on the disk, or "
            "check the folder's permissions"
        ) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def torch_bytes(value: Any) -> bytes:
    """`torch.save` into memory: written to a full disk directly, its error would not say what is wrong."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def read_checkpoint(path: Path, recipe: Recipe) -> dict[str, Any]:
    """What `checkpoint.pt` holds; nothing in it is executed.

    Raises:
        CheckpointError: if it is missing or damaged, or of another format or recipe (notes aside).
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint to resume from: check the folder, or train without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        version, made_with = state["format"], state["recipe"]
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__}: {str(error).splitlines()[0]}): "
            f"nothing was changed; restore the file, or train into a new folder"
        ) from error
    if version != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: has format {version}, this version reads {CHECKPOINT_FORMAT}: train into a new folder"
        )
    now = recipe.to_dict()
    differing = sorted(
        key for key in now.keys() | made_with.keys() if key != "notes" and now.get(key) != made_with.get(key)
    )
    if differing:
        what = ", ".join(f"{key} {made_with.get(key)!r} (now {now.get(key)!r})" for key in differing)
        raise CheckpointError(
            f"{path}: is of another recipe: {what}. Nothing was changed; resume with the recipe.yaml beside it, "
            f"or train into a new folder"
        )
    return state


def refuse_used_folder(out: Path) -> None:
    """Raise `CheckpointError` where the folder holds a run already: none is overwritten."""
    for name in ("checkpoint.pt", "train_log.csv", "metrics.json", "model.safetensors"):
        if (out / name).exists():
            raise CheckpointError(
                f"{out} already holds a run ({name}): go on with it (--resume), or train into another folder"
            )


def remove_leftovers(out: Path) -> None:
    """Remove the half-written files of runs in this folder that were killed while they wrote."""
    for leftover in (*out.glob(".*.tmp"), *out.glob(".publish-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def save_initial_kernels(out: Path, model: nn.Module) -> None:
    """Keep the weights from the first two input channels to the first output channel of each convolution in the block.

    A few kilobytes, with which Figure 2 can show real initial values: tensors (2, kH, kW), or (2, kH, kW, m) of splines.
    """
    block = getattr(model, "block", nn.Identity())
    kernels = {
        name: p.detach()[0, :2].cpu().contiguous().clone() for name, p in block.named_parameters() if p.dim() >= 4
    }
    atomic_write(out / "initial_kernels.safetensors", lambda file: file.write(save(kernels)))


def write_log(path: Path, history: list[dict[str, Any]]) -> None:
    """Write the log anew: one row an epoch, with those of `LOG_COLUMNS` that the run has.

    Errors are in %; `step_seconds` is the mean of the epoch's steps, `seconds` the time since the run began.
    """
    columns = [c for c in LOG_COLUMNS if any(c in row for row in history)] if history else list(LOG_COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def save_weights(out: Path, model: nn.Module, recipe: Recipe, classes: tuple[str, ...]) -> None:
    """Write model.safetensors and config.json in timm's Hub format; `classes` are the labels' names, in their order.

    The file of weights says in its metadata that they are PyTorch's, which readers other than timm ask for.
    A model's family that is not categorical goes with them, its dispersion too, so that the loaded model has it.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".publish-") as folder:
        overlay: dict[str, Any] = {"pretrained_cfg": {"tag": recipe.tag}}
        family = getattr(model, "family", None)
        if family is None or isinstance(family, Categorical):
            overlay["label_names"] = list(classes)
        else:
            overlay["model_args"] = {"family": family.to_dict()}
        model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # which a file of weights needs
        save_for_hf(model, folder, model_config=overlay, safe_serialization=True)
        save_file(model.state_dict(), Path(folder, "model.safetensors"), metadata={"format": "pt"})
        for name in ("model.safetensors", "config.json"):
            os.chmod(Path(folder, name), 0o644)
            os.replace(Path(folder, name), out / name)
