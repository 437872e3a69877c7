"""Baking: the splines of time become the fixed weights that the model's grid asks for.

    plain = bake(model)     # convolutions, norms and additions alone; `gode_zoo.surgery.bake` is the same

Shapes: x ``(B, C, H, W)``; S distinct stage times of the grid, L convolutions in the field.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from .fields import SplineConvField
from .layers import SplineGroupNorm
from .ode_block import ODEBlock

__all__ = ["BakedBlock", "bake", "with_blocks"]


class BakedBlock(nn.Module):
    """The steps of an ``ODEBlock`` on its fixed grid with plain layers: no time, no spline.

    Made by ``bake``. ``norms[c][i]`` and ``convs[c][i]`` are norm and convolution i of the c-th evaluation of the field, in
    the order in which the steps make them. Evaluations at the same time share their layers; norms that do not vary with time
    are shared by all.

    Args:
        block: a block of a ``SplineConvField`` with a fixed grid; its tensors are copied.
    """

    num_stages: Final[int]
    leaping: Final[bool]
    if TYPE_CHECKING:
        # ModuleLists of ModuleLists, which mypy cannot iterate over; TorchScript must not see the annotation.
        convs: Any
        norms: Any
    stages: list[list[float]]
    weights: list[float]
    step_sizes: list[float]

    def __init__(self, block: ODEBlock) -> None:
        super().__init__()
        field = block.field
        assert isinstance(field, SplineConvField) and block.fixed
        self.stages, self.weights = copy.deepcopy(block.stages), list(block.weights)
        self.step_sizes, self.num_stages = list(block.step_sizes), len(block.weights)
        self.leaping = block.leaping
        times = range(len(block.times))
        with torch.no_grad():
            kernels = [conv.weights_at(block.table) for conv in field.convs]  # type: ignore[operator]
            convs = [nn.ModuleList(_conv(kernel[s]) for kernel in kernels) for s in times]
            if field.spline_norms:
                rows = [norm.weights_at(block.table) for norm in field.norms]  # type: ignore[operator]
                norms = [nn.ModuleList(map(_norm, field.norms, ([v[s] for v in row] for row in rows))) for s in times]
            else:
                norms = [copy.deepcopy(field.norms)] * len(times)
        order = times if self.leaping else [s for step in block.stage_index for s in step]
        self.convs = nn.ModuleList(convs[s] for s in order)
        self.norms = nn.ModuleList(norms[s] for s in order)
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        """The state at the end of the span: ``(B, C, H, W)`` to the same shape."""
        if self.leaping:
            return self._leap(x)
        slopes: list[Tensor] = []
        for call, (norms, convs) in enumerate(zip(self.norms, self.convs)):  # noqa: B905 (TorchScript's zip has no strict)
            step, stage = self.step_sizes[call // self.num_stages], call % self.num_stages
            y = x
            for j, a in enumerate(self.stages[stage]):
                if a != 0.0:
                    y = torch.add(y, slopes[j], alpha=step * a)
            for norm, conv in zip(norms, convs):  # noqa: B905
                y = conv(torch.relu(norm(y)))
            slopes.append(y)
            if stage == self.num_stages - 1:
                for j, b in enumerate(self.weights):
                    if b != 0.0:
                        x = torch.add(x, slopes[j], alpha=step * b)
                slopes.clear()
        return x

    def _leap(self, x: Tensor) -> Tensor:
        """The steps of ``reversible.leapfrog``."""
        v = torch.zeros_like(x)
        for call, (norms, convs) in enumerate(zip(self.norms, self.convs)):  # noqa: B905
            half = self.step_sizes[call - 1] / 2 if call > 0 else 0.0
            y = torch.add(x, v, alpha=half)
            slope = y
            for norm, conv in zip(norms, convs):  # noqa: B905
                slope = conv(torch.relu(norm(slope)))
            v = 2 * slope - v if call > 0 else slope
            x = torch.add(y, v, alpha=half)
        return x


def _conv(kernel: Tensor) -> nn.Conv2d:
    """A 3×3 convolution, padding 1, without bias, with a copy of the kernel ``(C, C, 3, 3)``."""
    conv = nn.Conv2d(
        kernel.shape[1], kernel.shape[0], 3, padding=1, bias=False, device=kernel.device, dtype=kernel.dtype
    )
    conv.weight.data.copy_(kernel)
    return conv


def _norm(norm: Any, numbers: list[Tensor]) -> nn.Module:
    """A norm that varies with time as the plain layer with a copy of these numbers, one row of its ``weights_at``."""
    options: dict[str, Any] = {"eps": norm.eps, "device": numbers[0].device, "dtype": numbers[0].dtype}
    if isinstance(norm, SplineGroupNorm):
        plain: nn.GroupNorm | nn.BatchNorm2d = nn.GroupNorm(norm.num_groups, norm.num_channels, **options)
    else:
        plain = nn.BatchNorm2d(norm.num_channels, momentum=norm.momentum, **options)
        plain.running_mean.copy_(numbers[2])  # type: ignore[union-attr]
        plain.running_var.copy_(numbers[3].clamp_min(0.0))  # type: ignore[union-attr]
    plain.weight.data.copy_(numbers[0])
    plain.bias.data.copy_(numbers[1])
    return plain


def bake(model: nn.Module) -> nn.Module:
    """A copy of a model in which every spline block has become a plain network, with fixed weights for its grid.

    The outputs are the same to rounding. The copy has no splines: another solver or grid is chosen before baking, as in
    ``timm.create_model(name, pretrained=True, solver="rk4", num_steps=10)``. It holds a kernel for each stage time instead
    of one for each basis function.

    Args:
        model: a model with at least one ``ODEBlock`` of a ``SplineConvField``, itself included. It is left as it is.

    Raises:
        ValueError: if there is no such block, or one has an adaptive solver, whose stage times are not known beforehand.
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, ODEBlock)}
    spline = {name: block for name, block in blocks.items() if isinstance(block.field, SplineConvField)}
    if not spline:
        fields = ", ".join(type(block.field).__name__ for block in blocks.values()) or "no ODE block"
        raise ValueError(
            f"{type(model).__name__} has no block of a SplineConvField to bake (it has {fields}): give a gode_* model"
        )
    for name, block in spline.items():
        if not block.fixed:
            raise ValueError(
                f"{name or type(block).__name__} has solver={block.solver!r}, which chooses its steps anew for every "
                'input: make the model with a fixed grid, such as solver="rk4", num_steps=10'
            )
    if isinstance(model, ODEBlock):
        return BakedBlock(model)
    return with_blocks(model, {block: BakedBlock(block) for block in spline.values()})


def with_blocks(model: nn.Module, blocks: Mapping[nn.Module, nn.Module]) -> Any:
    """A copy of a model with other blocks in place of these; what the others share with the model stays shared."""
    return copy.deepcopy(model, {id(block): other for block, other in blocks.items()})
