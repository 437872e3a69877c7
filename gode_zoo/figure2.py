"""The paper's Figure 2: how one 3×3 kernel changes over time or over the layers, before and after training.

    plot_figure2({"Neural-GODE": folder, "Neural-ODE": other, "ResNet": third}).savefig("figure2.png")

One row of panels a model, its nine weights as curves: of the first convolution in the block, from the first channel of the
state to the first. Over t they are W(t) = Σ_i B_i(t) ξ_i of a GODE and constants of a Neural-ODE, over the blocks the
weights of a ResNet. On the left stand the real initial values, which each run keeps (`initial_kernels.safetensors`).

Source: Yu, Miao and Wu, section 4. Needs matplotlib, the extra `plots`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from .models import GODE, ODENet, ResNet
from .paper import EPOCHS
from .plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["kernel_curves", "plot_figure2"]

_POINTS = 201


def kernel_curves(model: Any, kernels: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor, str]:
    """Where and what one kernel's weights are: positions (S,), weights (S, 9), and the name of the axis.

    Args:
        model: a GODE, ODENet or ResNet of this package.
        kernels: `initial_kernels.safetensors` of the model's run; the model's own weights where None.

    Raises:
        ValueError: another kind of model, or kernels of another one.
    """

    def kernel(name: str, channel: int) -> Tensor:
        """(3, 3) or (3, 3, m), from state channel `channel` to the first."""
        if kernels is None:
            return model.block.get_parameter(name).detach()[0, channel]
        if name not in kernels:
            raise ValueError(f"the initial kernels have no {name}: they are of another model")
        return kernels[name][channel]

    if isinstance(model, GODE):
        conv: Any = model.block.field.convs[0]  # type: ignore[union-attr, index]
        times = _times(conv.basis.t_span)
        coeffs = kernel("field.convs.0.coeffs", 0).double().flatten(0, 1)  # (9, m)
        return times, conv.basis(times) @ coeffs.T, "t"
    if isinstance(model, ODENet):
        times = _times(model.block.t_span)  # type: ignore[arg-type]
        constant = kernel("field.conv1.conv.weight", 1).double().flatten()  # input channel 0 is time
        return times, constant.expand(_POINTS, 9), "t"
    if isinstance(model, ResNet):
        count = len(model.block.blocks)  # type: ignore[arg-type]
        weights = [kernel(f"blocks.{i}.conv1.weight", 0).double().flatten() for i in range(count)]
        return torch.arange(1, count + 1, dtype=torch.float64), torch.stack(weights), "block"
    raise ValueError(f"{type(model).__name__}: must be a GODE, an ODENet or a ResNet")


def _times(t_span: tuple[float, float]) -> Tensor:
    t0, t1 = t_span
    return torch.linspace(t0, t1, _POINTS, dtype=torch.float64)


def plot_figure2(runs: dict[str, Path]) -> Figure:
    """Draw the initial and the trained kernel of each run.

    Args:
        runs: title of each row, and the folder of a finished run.

    Raises:
        ValueError: no run, or one of another kind of model.
        ImportError: matplotlib is missing.
    """
    if not runs:
        raise ValueError("no runs: give at least one finished run")
    figure = new_figure(8.0, 2.4 * len(runs))
    for axes, (title, folder) in zip(figure.subplots(len(runs), 2, squeeze=False), runs.items(), strict=True):
        model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
        kept = folder / "initial_kernels.safetensors"
        for ax, when in zip(axes, ("initial", "trained"), strict=True):
            ax.set_title(f"{title}, {_epochs(folder) if when == 'trained' else when}", fontsize="medium")
            if when == "initial" and not kept.is_file():
                ax.text(0.5, 0.5, "not kept by this run", ha="center", transform=ax.transAxes)
                ax.set_axis_off()
                continue
            where, weights, axis = kernel_curves(model, load_file(kept) if when == "initial" else None)
            ax.plot(where, weights, linewidth=1.0, marker="." if axis == "block" else "")
            ax.axhline(0.0, color="grey", linewidth=0.5)
            ax.set(xlabel=axis, ylabel="weight", xlim=(float(where[0]), float(where[-1])))
        limit = max(abs(edge) for ax in axes if ax.axison for edge in ax.get_ylim())
        for ax in axes:
            ax.set_ylim(-limit, limit)
    return figure


def _epochs(folder: Path) -> str:
    """How long the run was, beside the paper's where it was shorter."""
    epochs = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["epochs"]
    return f"after {epochs} epochs" if epochs >= EPOCHS else f"after {epochs} of {EPOCHS} epochs"
