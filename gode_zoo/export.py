"""Export: a model as one file that runs without this package, run back on test images before it is put in place.

    result = export("gode_cifar10_m8", "onnx", "model.onnx", dynamic_batch=True)
    result.largest_difference, result.exported.error, result.source.error

Formats, all with standard operators only:
    onnx          ONNX, run back with onnxruntime; `int8=True` quantises it, calibrated on training images
    torchexport   torch.export's .pt2, run back with torch.export.load
    torchscript   TorchScript, run back with torch.jit.load

The network takes normalised images `images (B, C, H, W)` and gives `logits (B, num_classes)`. How to normalise them, the
names of the classes and where the weights came from lie in the file as JSON: ONNX metadata or extra file `gode_zoo.json`.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.model_config import resolve_input_data_config
from torch import Tensor, nn

from . import data as zoo_data
from .bake import bake as bake_model
from .evaluate import Score, load_published
from .fields import SplineConvField
from .ode_block import ODEBlock

__all__ = ["FORMATS", "Export", "ExportError", "export", "open_onnx", "quantize_onnx", "quietly", "write_onnx"]

FORMATS = {"onnx": ".onnx", "torchexport": ".pt2", "torchscript": ".ts"}
CALIBRATION_IMAGES = 512
NOTES_FILE = "gode_zoo.json"

Runner = Callable[[Tensor], Tensor]


class ExportError(RuntimeError):
    """An exported file does not compute what its source does."""


@dataclass(frozen=True)
class Export:
    """A file that was written, and how it ran back.

    Attributes:
        largest_difference: of a logit from the source's, over all images.
        source: the source's score on the images, `exported` the file's.
        baked: whether its weights are fixed; else it keeps its splines.
    """

    path: Path
    format: str
    baked: bool
    int8: bool
    largest_difference: float
    source: Score
    exported: Score


def export(
    name: str,
    format: str,
    out: str | Path | None = None,
    *,
    bake: bool = True,
    dynamic_batch: bool = False,
    batch_size: int | None = None,
    int8: bool = False,
    images: int | None = None,
    data_dir: str | Path | None = None,
) -> Export:
    """Write a published model to a file of another format, after that file has given the source's answers.

    Args:
        name: `arch`, `arch.tag`, or the folder of a finished run.
        format: onnx, torchexport or torchscript.
        out: the file; default `<arch>.<tag>` with the format's ending in the working directory.
        bake: fix the weights for the model's grid. A model without splines of time is exported as it is.
        dynamic_batch: let the file take any number of images at once. TorchScript always does.
        batch_size: the number it takes otherwise; default 1.
        int8: quantise (ONNX): its accuracy is reported, and may differ.
        images: how many test images to run back, drawn at random but always the same; None takes all.
        data_dir: where datasets are kept.

    Raises:
        ExportError: if the accuracy on the images is not the source's. No file is left.
        ValueError: on a value outside these limits, or a file that exists.
        WeightsError, DataError: as `evaluate` does.
        ImportError: the extra `export` is not installed.
    """
    _check(format, dynamic_batch, batch_size, int8, images)
    model, folder = load_published(name)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    full_name = f"{metrics['model']}.{metrics['tag']}"
    target = Path(out) if out is not None else Path(full_name + (".int8" if int8 else "") + FORMATS[format])
    if target.exists():
        raise ValueError(f"{target} exists: remove it, or give another file as out")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}: make it first")
    inputs = resolve_input_data_config(model=model)
    find = {"data_dir": data_dir, "input_size": tuple(inputs["input_size"]), "num_classes": model.num_classes}
    test = zoo_data.load_dataset(metrics["dataset"], "test", **find).sample(images)  # type: ignore[arg-type]
    calibration = None
    if int8:
        train = zoo_data.load_dataset(metrics["dataset"], "train", **find)  # type: ignore[arg-type]
        calibration = zoo_data.normalize(train.sample(CALIBRATION_IMAGES).images, inputs["mean"], inputs["std"])

    fields = [m.field for m in model.modules() if isinstance(m, ODEBlock) and isinstance(m.field, SplineConvField)]
    baked = bake and bool(fields)
    plain = bake_model(model) if baked else copy.deepcopy(model)
    batch = 1 if batch_size is None else batch_size
    notes = {
        "model": full_name,
        "weights_sha256": metrics["sha256"],
        "baked": baked,
        "int8": int8,
        **{key: list(inputs[key]) for key in ("input_size", "mean", "std")},
        "label_names": json.loads((folder / "config.json").read_text(encoding="utf-8")).get("label_names"),
    }
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        written = Path(scratch, "model" + FORMATS[format])
        example = torch.zeros(2 if dynamic_batch else batch, *inputs["input_size"])
        with quietly():
            _WRITERS[format](plain, example, dynamic_batch, json.dumps(notes), written)
            if calibration is not None:
                written = quantize_onnx(written, calibration, batch)
            run = _RUNNERS[format](written)
        step = 250 if dynamic_batch or format == "torchscript" else batch
        difference, source, exported = _run_back(model, run, test, inputs, step)
        if not math.isfinite(difference) or (exported.correct != source.correct and not int8):
            raise ExportError(
                f"{full_name} as {format}: classifies {exported.correct} of {exported.total} images rightly, the source "
                f"{source.correct} (largest difference of a logit {difference:.3g}); no file was written"
            )
        os.replace(written, target)
    return Export(target, format, baked, int8, difference, source, exported)


def _check(format: str, dynamic_batch: bool, batch_size: int | None, int8: bool, images: int | None) -> None:
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: must be one of {', '.join(FORMATS)}")
    if int8 and format != "onnx":
        raise ValueError(f"int8 with format={format!r}: quantisation is there for onnx alone")
    if dynamic_batch and batch_size is not None:
        raise ValueError(f"batch_size={batch_size} with dynamic_batch: give one of the two")
    for name, value in (("batch_size", batch_size), ("images", images)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more")


def _run_back(
    model: nn.Module, run: Runner, test: zoo_data.ImageData, inputs: dict[str, Any], batch: int
) -> tuple[float, Score, Score]:
    """Largest difference of a logit, and both scores. The last batch is filled up with zeros to the size of the others."""
    difference, correct = torch.zeros(()), [0, 0]
    with torch.inference_mode():
        for pixels, labels in zoo_data.batches(test, batch, shuffle=False, drop_last=False):
            x = zoo_data.normalize(pixels, inputs["mean"], inputs["std"])
            filled = torch.cat([x, x.new_zeros(batch - len(x), *x.shape[1:])])
            theirs, ours = model(x), run(filled)[: len(x)]
            difference = torch.maximum(difference, (ours - theirs).abs().max())  # which keeps a NaN
            for i, logits in enumerate((theirs, ours)):
                correct[i] += int((logits.argmax(dim=1) == labels).sum())
    return float(difference), Score(correct[0], len(test)), Score(correct[1], len(test))


@contextmanager
def quietly() -> Any:
    """Without the exporters' own lines: deprecations of TorchScript, and what onnxruntime logs about a quantised model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def write_onnx(model: nn.Module, example: Tensor, dynamic_batch: bool, notes: str, path: Path) -> None:
    """Write a network as ONNX, for batches of the example's size or any, with `notes` as its metadata."""
    _onnx("onnx")
    _onnx("onnxscript")
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": shapes}
    program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, **options)
    assert program is not None
    program.model.metadata_props["gode_zoo"] = notes
    program.save(str(path), external_data=False)


def _write_torchexport(model: nn.Module, example: Tensor, dynamic_batch: bool, notes: str, path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    torch.export.save(program, str(path), extra_files={NOTES_FILE: notes})


def _write_torchscript(model: nn.Module, example: Tensor, dynamic_batch: bool, notes: str, path: Path) -> None:
    torch.jit.script(model).save(str(path), _extra_files={NOTES_FILE: notes})


_WRITERS = {"onnx": write_onnx, "torchexport": _write_torchexport, "torchscript": _write_torchscript}


def quantize_onnx(path: Path, images: Tensor, batch: int) -> Path:
    """The ONNX model with int8 weights (a scale a channel) and activations; scales from `images`, in batches of `batch`."""
    _onnx("onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images.split(batch))

        def get_next(self) -> dict[str, Any] | None:
            chunk = next((c for c in self.rest if len(c) == batch), None)
            return None if chunk is None else {"images": chunk.numpy()}

    small = path.with_name("int8.onnx")
    quantize_static(
        str(path),
        str(small),
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    notes = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    quantised = onnx.load(small)
    onnx.helper.set_model_props(quantised, notes)
    onnx.save(quantised, small)
    return small


def _onnx(module: str) -> None:
    """Raise where a package of the extra `export` is missing."""
    try:
        __import__(module)
    except ImportError as error:
        raise ImportError(f"{module} is missing: install the extra `export`: pip install 'gode_zoo[export]'") from error


# ---------------------------------------------------------------------------------------------------------------------
# Running back


def open_onnx(path: Path, threads: int = 0) -> Runner:
    """An ONNX file as a function of images, run by onnxruntime with so many threads (0 lets it choose)."""
    _onnx("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _run_torchexport(path: Path) -> Runner:
    return torch.export.load(str(path)).module()


def _run_torchscript(path: Path) -> Runner:
    return torch.jit.load(str(path))


_RUNNERS: dict[str, Callable[[Path], Runner]] = {
    "onnx": open_onnx,
    "torchexport": _run_torchexport,
    "torchscript": _run_torchscript,
}
