"""What is measured: each figure yields rows, every peer checked to compute the same network before it is timed.

inference   whole model, at batch 1, 32 and 1024; calls of the field (NFE)
training    one step of SGD at batch 128, its peak memory; the floor's kernels are trained as they are
axes        inference at batch 1 against m, steps and T
memory      peak memory and time of the block's gradients against steps, for each sensitivity
variants    what else there is to make it faster: bf16, channels_last, torch.compile, onnxruntime
start       import and creation, each in a fresh process
"""

from __future__ import annotations

import copy
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bake import bake
from ..mixed_precision import any_chip_bf16
from ..ode_block import ODEBlock
from . import peers
from .measuring import captured, peak_memory, take_turns

__all__ = ["FIGURES", "Row", "run"]

INFERENCE = ((1, 15.0), (32, 15.0), (1024, 25.0))  # batch size, seconds to spend
TRAINING_BATCH = 128
AXES = {"m": (2, 8, 32, 64), "steps": (5, 20, 80, 160), "T": (1, 2, 3)}
MEMORY_STEPS = (5, 10, 20, 40, 80, 160)
QUICK = 0.15  # of the time that each comparison is given


@dataclass(frozen=True)
class Row:
    """One measured value.

    Attributes:
        figure: one of `FIGURES`, with what is varied: "inference", "training", "axes m" …
        peer: what was measured; ratios are to the figure's first peer at the same `at`.
        at: value of what is varied (batch size, m, steps, T).
        seconds: median, where time was taken.
        ratio: median over the turns of this peer's seconds / the first one's, and its quartiles.
        bytes: peak memory beyond what was held before.
        note: why there is no value, or what a reader must know.
    """

    figure: str
    peer: str
    at: float
    seconds: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    bytes: int | None = None
    nfe: int | None = None
    note: str = ""


@dataclass(frozen=True)
class _Setting:
    model: str
    device: torch.device
    scale: float  # of the seconds that each comparison is given
    shape: tuple[int, int, int]

    def create(self, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        return timm.create_model(self.model, **kwargs).to(self.device).eval()

    def images(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, *self.shape, generator=generator).to(self.device)

    def turns(self, functions: dict[str, Callable[[], object]], seconds: float) -> Any:
        return take_turns(functions, self.scale * seconds, self.device)


def run(
    what: Sequence[str] | None = None, model: str = "gode_cifar10_m8", *, device: str = "cpu", quick: bool = False
) -> Iterator[Row]:
    """Measure, yielding each value when it is there.

    Args:
        what: names of `FIGURES`; None takes all.
        model: a GODE model with two or more convolutions and a fixed grid of Euler steps.
        device: where to run.
        quick: fewer repeats and no compiling: to see that it works, not to report.

    Raises:
        ValueError: an unknown figure, or a model that is not such a one.
        RuntimeError: a peer does not compute the same network.
    """
    chosen = list(FIGURES) if what is None else list(what)
    for name in chosen:
        if name not in FIGURES:
            raise ValueError(f"what={name!r}: must be one of {', '.join(FIGURES)}")
    made: Any = timm.create_model(model)
    block = getattr(made, "block", None)
    if not isinstance(block, ODEBlock) or block.solver != "euler" or len(getattr(block.field, "convs", [])) < 2:
        raise ValueError(
            f"model={model!r}: has no spline block of Euler steps with two convolutions: give a gode_* model"
        )
    setting = _Setting(model, torch.device(device), QUICK if quick else 1.0, made.pretrained_cfg["input_size"])
    for name in chosen:
        yield from FIGURES[name](setting)


def _peer_models(model: Any, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Whole models, each with a peer for its block and all weights its own, checked; and why others are missing."""
    x = model.stem(torch.randn(2, *model.pretrained_cfg["input_size"], device=model.block.table.device)).detach()
    models, missing = {}, {}
    for name in names:
        try:
            peer = peers.make(name, model.block)
        except ImportError as error:
            missing[name] = f"not measured: {error.name or error} is not installed"
            continue
        peers.check_equal(name, peer, model.block, x)
        own = copy.deepcopy(model, {id(model.block): peer})
        models[name] = own
    return models, missing


def _inference(setting: _Setting) -> Iterator[Row]:
    model = setting.create()
    models, missing = _peer_models(model, list(peers.PEERS))
    if setting.device.type == "cuda":
        missing["diffrax"] = "not measured: on the CPU alone"
        models.pop("diffrax", None)
    for batch, seconds in INFERENCE:
        x = setting.images(batch)
        functions: dict[str, Callable[[], object]] = {n: functools.partial(m, x) for n, m in models.items()}
        with torch.inference_mode():
            if setting.device.type == "cuda" and batch == 1:
                functions |= {f"{n}, graph": captured(functions[n]) for n in ("ours", "ours baked", "floor")}
            for name, t in setting.turns(functions, seconds).items():
                nfe = _nfe(models[name], x) if batch == 1 and name in models else None
                yield Row("inference", name, batch, t.seconds, t.ratio, t.ratio_low, t.ratio_high, nfe=nfe)
        for name, why in missing.items():
            yield Row("inference", name, batch, note=why)


def _nfe(model: Any, x: Tensor) -> int | None:
    """Calls of the field in one solve; None where they cannot be seen from here (XLA)."""
    block = model.block
    if isinstance(block, ODEBlock):
        return block.solve(model.stem(x)).nfe
    norms = getattr(block, "norms", None) or block.field.norms
    calls: list[int] = []
    handle = norms[0].register_forward_hook(lambda *_: calls.append(1))
    model(x)
    handle.remove()
    return len(calls) or None


def _training_step(model: Any, x: Tensor, labels: Tensor, bf16: bool = False) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with any_chip_bf16(x.device, "bf16" if bf16 else "none"):  # as in training
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(x), labels)
            loss.backward()
        optimizer.step()

    return step


def _training(setting: _Setting) -> Iterator[Row]:
    models, missing = _peer_models(setting.create(), [name for name in peers.PEERS if name not in peers.FORWARD_ONLY])
    x = setting.images(TRAINING_BATCH)
    labels = torch.arange(TRAINING_BATCH, device=setting.device) % models["ours"].num_classes
    steps = {name: _training_step(model, x, labels) for name, model in models.items()}
    steps["ours bf16"] = _training_step(copy.deepcopy(models["ours"]), x, labels, bf16=True)
    if setting.device.type == "cuda":
        graphs = {name: _training_step(copy.deepcopy(models["ours"]), x, labels) for name in ("ours, graph",)}
        fixed, _ = _peer_models(setting.create(), ["floor"])
        graphs["floor, graph"] = _training_step(fixed["floor"], x, labels)
        steps |= {name: captured(step) for name, step in graphs.items()}
    for step in steps.values():
        step()
    peak = {name: peak_memory(step, setting.device) for name, step in steps.items() if not name.endswith("graph")}
    for name, t in setting.turns(steps, 45.0).items():
        yield Row("training", name, TRAINING_BATCH, t.seconds, t.ratio, t.ratio_low, t.ratio_high, bytes=peak.get(name))
    for name, why in missing.items():
        yield Row("training", name, TRAINING_BATCH, note=why)


def _axes(setting: _Setting) -> Iterator[Row]:
    x = setting.images(1)
    for axis, values in AXES.items():
        for value in values:
            named: dict[str, Any] = {"m": ("num_basis", value), "steps": ("num_steps", value)}
            keyword, argument = named.get(axis, ("t_span", (0.0, float(value))))
            model = setting.create(**{keyword: argument})
            models, _ = _peer_models(model, ["ours", "ours baked", "floor"])
            # The authors' table has a spacing of 1e-3, which holds the times of these grids alone.
            if all(abs(1000 * t - round(1000 * t)) < 1e-6 for t in models["ours"].block.times):
                authors, _ = _peer_models(model, ["authors' formulation"])
                models |= authors
            with torch.inference_mode():
                for name, t in setting.turns({n: functools.partial(m, x) for n, m in models.items()}, 4.0).items():
                    yield Row(f"axes {axis}", name, value, t.seconds, t.ratio, t.ratio_low, t.ratio_high)


def _memory(setting: _Setting) -> Iterator[Row]:
    field: Any = setting.create().block.field
    x = torch.randn(TRAINING_BATCH, field.convs[0].in_channels, 7, 7, device=setting.device, requires_grad=True)
    kinds: dict[str, dict[str, Any]] = {
        "autograd": {},
        "checkpoint": {"sensitivity": "checkpoint"},
        "reversible (leapfrog)": {"solver": "leapfrog", "sensitivity": "reversible"},
    }

    def gradients(block: ODEBlock) -> Callable[[], object]:
        return lambda: block(x).sum().backward()

    for steps in MEMORY_STEPS:
        functions = {
            name: gradients(ODEBlock(copy.deepcopy(field), num_steps=steps, **kind).to(setting.device))
            for name, kind in kinds.items()
        }
        peak = {}
        for name, function in functions.items():
            function()  # makes the gradients' own memory
            peak[name] = peak_memory(function, setting.device)
        timings = setting.turns(functions, 25.0) if steps == 20 else {}
        for name, size in peak.items():
            t = timings.get(name)
            yield Row("memory", name, steps, bytes=size)
            if t is not None:
                yield Row("memory, time", name, steps, t.seconds, t.ratio, t.ratio_low, t.ratio_high)
    adaptive = ODEBlock(copy.deepcopy(field), solver="dopri5", sensitivity="adjoint").to(setting.device)
    gradients(adaptive)()
    solution = adaptive.solve(x.detach())
    size = peak_memory(gradients(adaptive), setting.device)
    yield Row("memory", "adjoint (dopri5)", solution.num_accepted, bytes=size, nfe=solution.nfe)


def _variants(setting: _Setting) -> Iterator[Row]:
    """Ratios to the floor. Outputs may differ from the source's by what the precision gives."""
    model = setting.create()
    floor = _floor(model)
    baked = bake(model)
    x = setting.images(1)
    with torch.inference_mode():
        functions: dict[str, Callable[[], object]] = {"floor": functools.partial(floor, x)}
        functions["ours"] = functools.partial(model, x)
        functions["baked"] = functools.partial(baked, x)
        last: Any = torch.channels_last
        functions["baked, channels_last"] = functools.partial(
            copy.deepcopy(baked).to(memory_format=last), x.to(memory_format=last)
        )
        functions["baked, bf16 weights"] = functools.partial(copy.deepcopy(baked).bfloat16(), x.bfloat16())
        if setting.scale == 1.0:
            functions["baked, torch.compile"] = functools.partial(torch.compile(baked), x)
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        if setting.device.type == "cpu":
            try:
                functions |= _onnx(baked, x, setting, Path(folder))
            except ImportError as error:
                notes["baked, onnxruntime"] = f"not measured: {error}"
        with torch.inference_mode():
            for name, t in setting.turns(functions, 15.0).items():
                yield Row("variants, inference", name, 1, t.seconds, t.ratio, t.ratio_low, t.ratio_high)
    for name, why in notes.items():
        yield Row("variants, inference", name, 1, note=why)

    x, labels = setting.images(TRAINING_BATCH), torch.arange(TRAINING_BATCH, device=setting.device) % 10
    steps = {"floor": _training_step(_floor(model), x, labels)}
    steps["ours"] = _training_step(copy.deepcopy(model), x, labels)
    steps["ours, bf16"] = _training_step(copy.deepcopy(model), x, labels, bf16=True)
    steps["ours, bf16, channels_last"] = _training_step(
        copy.deepcopy(model).to(memory_format=last), x.to(memory_format=last), labels, bf16=True
    )
    if setting.scale == 1.0:
        steps["ours, torch.compile"] = _training_step(torch.compile(copy.deepcopy(model)), x, labels)
    for name, t in setting.turns(steps, 30.0).items():
        yield Row("variants, training", name, TRAINING_BATCH, t.seconds, t.ratio, t.ratio_low, t.ratio_high)


def _floor(model: Any) -> Any:
    """The model with the floor for its block, checked, all weights its own."""
    return _peer_models(model, ["floor"])[0]["floor"]


def _onnx(baked: nn.Module, x: Tensor, setting: _Setting, folder: Path) -> dict[str, Callable[[], object]]:
    """onnxruntime with as many threads as torch has, in float32 and, calibrated on noise (for its time alone), in int8."""
    from ..export import open_onnx, quantize_onnx, quietly, write_onnx

    with quietly():
        write_onnx(baked, x, False, "{}", folder / "model.onnx")
        small = quantize_onnx(folder / "model.onnx", setting.images(4), 1)
    threads = torch.get_num_threads()
    return {
        "baked, onnxruntime": functools.partial(open_onnx(folder / "model.onnx", threads), x),
        "baked, onnxruntime int8": functools.partial(open_onnx(small, threads), x),
    }


def _start(setting: _Setting) -> Iterator[Row]:
    codes = {
        "import torch, timm": "import torch, timm",
        "import gode_zoo": "import gode_zoo",
        "import and create": f"import gode_zoo, timm; timm.create_model({setting.model!r})",
    }
    for name, code in codes.items():
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": _root()})
            taken.append(time.perf_counter() - start)
        yield Row("start", name, 0, statistics.median(taken))


def _root() -> str:
    return os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])


FIGURES: dict[str, Callable[[_Setting], Iterator[Row]]] = {
    "inference": _inference,
    "training": _training,
    "axes": _axes,
    "memory": _memory,
    "variants": _variants,
    "start": _start,
}
