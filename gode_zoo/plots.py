"""Pictures: weights over time, and images with what a model takes them for. Needs matplotlib, the extra `plots`.

    plot_kernel(model).savefig("kernel.png")
    plot_predictions(images, predicted, labels).savefig("predictions.png")

Each function draws into the figure given, or into a new one, and returns it. Figures are made without pyplot, so
nothing here needs a display, and no figure stays open. matplotlib is imported by the first call.

Shapes: images (N, C, H, W), labels and predictions (N,); W(t) of one kernel (kH, kW).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .layers import SplineConv2d
from .ode_block import ODEBlock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plot_kernel", "plot_predictions"]

_POINTS = 401  # of each curve


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is missing: install the extra `plots`: pip install 'gode_zoo[plots]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def plot_kernel(
    model: nn.Module,
    conv: int = 0,
    out_channel: int | None = None,
    in_channel: int | None = None,
    *,
    figure: Any = None,
) -> Figure:
    """Draw one kernel of a spline convolution over t: one curve for each of its weights, W(t) = Σ_i B_i(t) ξ_i.

    Short strokes at the lower edge mark the grid of the model's ODE block, where it has a fixed one.

    Args:
        model: any module that contains `SplineConv2d` layers, such as `timm.create_model("gode_mnist_m4")`.
        conv: which of them, in the order of `model.modules()`.
        out_channel: which kernel; both None takes the one with the largest coefficients (in the Euclidean norm).
        in_channel: as `out_channel`, counted within the group where the convolution has groups.
        figure: matplotlib figure or subfigure to draw into; a new one where None.

    Raises:
        ValueError: no spline convolution, or a number that is out of range.
        ImportError: matplotlib is missing.
    """
    layers = [module for module in model.modules() if isinstance(module, SplineConv2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no SplineConv2d: give a model whose kernels are splines of time")
    layer = layers[_index("conv", conv, len(layers))]
    if (out_channel is None) != (in_channel is None):
        raise ValueError(f"out_channel={out_channel}, in_channel={in_channel}: give both, or neither for the largest")
    with torch.no_grad():
        sizes = layer.coeffs.flatten(2).norm(dim=2)  # (out, in / groups)
        if out_channel is None or in_channel is None:
            out_channel, in_channel = divmod(int(sizes.argmax()), sizes.shape[1])
        out_channel = _index("out_channel", out_channel, sizes.shape[0])
        in_channel = _index("in_channel", in_channel, sizes.shape[1])
        t0, t1 = layer.basis.t_span
        times = torch.linspace(t0, t1, _POINTS, dtype=torch.float64)
        basis = layer.basis(times)  # (S, m)
        coeffs = layer.coeffs[out_channel, in_channel].detach().cpu().double()  # (kH, kW, m)
        weights = torch.einsum("sm,hwm->shw", basis, coeffs)

    figure = new_figure(6.4, 4.0) if figure is None else figure
    ax = figure.subplots()
    rows, columns = layer.kernel_size
    for row in range(rows):
        for column in range(columns):
            ax.plot(times, weights[:, row, column], label=f"{row + 1}, {column + 1}")
    block = next((m for m in model.modules() if isinstance(m, ODEBlock) and m.fixed), None)
    if block is not None:
        ax.plot(block.grid, [0.0] * len(block.grid), "|", color="black", transform=ax.get_xaxis_transform())
    ax.axhline(0.0, color="grey", linewidth=0.5)
    ax.set(xlabel="t", ylabel="weight", xlim=(t0, t1))
    ax.set_title(f"Kernel of convolution {conv}, channel {in_channel} to {out_channel}, over t")
    ax.legend(title="row, column", fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def plot_predictions(
    images: Tensor,
    predicted: Tensor | Sequence[int],
    labels: Tensor | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    columns: int = 8,
    figure: Any = None,
) -> Figure:
    """Draw images in a grid, each with its predicted class; where labels are given, green is right and red is wrong.

    Args:
        images: (N, C, H, W) with one or three channels, floating point in [0, 1] or uint8.
        predicted: N class numbers.
        labels: the N true class numbers.
        class_names: their names; the numbers where None.
        columns: images in a row.
        figure: matplotlib figure or subfigure to draw into; a new one where None.

    Raises:
        ValueError: shapes that do not belong together, or no image.
        ImportError: matplotlib is missing.
    """
    if images.dim() != 4 or len(images) < 1 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}: must be (N, 1, H, W) or (N, 3, H, W), N at least 1")
    for name, numbers in (("predicted", predicted), ("labels", labels)):
        if numbers is not None and len(numbers) != len(images):
            raise ValueError(f"{name} has {len(numbers)} entries for {len(images)} images: must have one for each")
    if columns < 1:
        raise ValueError(f"columns={columns}: must be at least 1")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = new_figure(0.9 * columns, 1.1 * rows) if figure is None else figure
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    pixels = images.detach().cpu()
    pixels = pixels if pixels.dtype == torch.uint8 else pixels.float().clamp(0.0, 1.0)
    white = 255 if pixels.dtype == torch.uint8 else 1.0

    def name_of(number: Any) -> str:
        return class_names[int(number)] if class_names is not None else str(int(number))

    for ax in axes:
        ax.set_axis_off()
    for i, ax in zip(range(len(images)), axes, strict=False):
        ax.imshow(pixels[i].permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=white)
        text, colour = name_of(predicted[i]), "black"
        if labels is not None:
            right = int(predicted[i]) == int(labels[i])
            text, colour = (text, "green") if right else (f"{text}, is {name_of(labels[i])}", "red")
        ax.set_title(text, fontsize="small", color=colour, pad=2)
    return figure


def _index(name: str, value: int, count: int) -> int:
    if not 0 <= value < count:
        raise ValueError(f"{name}={value}: must be 0 to {count - 1}")
    return value
