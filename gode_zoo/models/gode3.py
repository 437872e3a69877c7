"""Multi-stage Neural-GODE: three spline ODE blocks at full, half and quarter resolution, for the best accuracy at a size.

    stage        dx/dt = Conv(ReLU(Norm(Conv(ReLU(Norm(x; t)); W_1(t)); t)); W_2(t)),   0 ≤ t ≤ T
    transition   mean over 2×2 pixels, zeros for the new channels, + Conv 3×3, stride 2, of ReLU(BN(x))

    image → Conv 3×3 → stage (a) → transition → stage (b) → transition → stage (c) → BN, ReLU → pool → linear

Kernels, and the norms with their running statistics, are B-splines of time on clamped knots, so a stage has more
Euler steps than coefficients: depth costs time, but no parameters. Names: ``gode3_<data set>_<size>``.

The norms and the three resolutions are those of Stateful ODE-Net (continuousnet.py); splines of the kernels are the
paper's (gode.py).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..families import Family
from ..fields import SplineConvField
from ..ode_block import ODEBlock
from ..solvers import get_solver
from ..splines import BSplineBasis
from ._classifier import CIFAR10_CFG, MNIST_CFG, StemBlockHead, create, own_steps, tagged_cfgs

__all__ = ["GODE3"]


class Transition(nn.Module):
    """``AvgPool(x) + Conv(ReLU(BN(x)))``: half the rows and columns, ``out_channels`` ≥ ``channels`` channels."""

    def __init__(self, channels: int, out_channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.new_channels = out_channels - channels
        self.norm = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, out_channels, ⌈H/2⌉, ⌈W/2⌉)``."""
        pooled = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return F.pad(pooled, [0, 0, 0, 0, 0, self.new_channels]) + self.conv(torch.relu(self.norm(x)))


class GODE3(StemBlockHead):
    """Three spline ODE blocks with transitions between them.

    Args:
        channels: channels of the three stages, which do not fall.
        num_basis: number m of B-splines of each stage.
        degree: their degree k.
        knots: ``"clamped"``, or other knots on which the B-splines sum to one (with ``norm="spline_batch"``).
        t_span: (0, T) of each stage; T = 3 is 3 points better than T = 1 after one epoch (results/ablation.md).
        norm: ``"spline_batch"``, or ``"spline_group"``: norms that vary with time; ``"group"``: that do not.
        num_statistics: number of linear B-splines that keep the running statistics of ``"spline_batch"``; as many as steps,
            6 where None, keep them exactly at every step.
        solver: euler, midpoint, heun, rk4, leapfrog, dopri5 or tsit5.
        step_size: step of a fixed grid.
        num_steps: number of steps of a fixed grid, of all stages or of each; 6 where neither it nor ``step_size`` is given.
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver.
        sensitivity: ``"autograd"``, ``"checkpoint"`` or ``"reversible"``; with norms other than batch norms also
            ``"adjoint"``. See ``ODEBlock``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        channels: Sequence[int] = (24, 40, 48),
        num_basis: int = 3,
        degree: int = 1,
        knots: str | Sequence[float] | Tensor = "clamped",
        t_span: Sequence[float] = (0.0, 3.0),
        norm: str = "spline_batch",
        num_statistics: int | None = None,
        solver: str = "euler",
        step_size: float | None = None,
        num_steps: int | Sequence[int] | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        sensitivity: str = "autograd",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
        family: str | Mapping[str, Any] | Family = "categorical",
    ) -> None:
        widths = tuple(channels)
        if len(widths) != 3 or list(widths) != sorted(widths):
            raise ValueError(f"channels={channels!r}: must be three numbers, of which none is below the one before")
        if norm == "spline_batch" and sensitivity in ("adjoint", "reversible"):
            raise ValueError(
                f'sensitivity={sensitivity!r} with norm="spline_batch": the backward solve would normalise by other states '
                'and move the running statistics; use "autograd" or "checkpoint", or norm="spline_group"'
            )
        if norm != "spline_batch" and num_statistics is not None:
            raise ValueError(f"num_statistics={num_statistics} with norm={norm!r}, which keeps none: take it out")
        if step_size is None and num_steps is None and not get_solver(solver).adaptive:
            num_steps = 6
        steps = tuple(num_steps) if isinstance(num_steps, Sequence) else (num_steps,) * 3
        if len(steps) != 3:
            raise ValueError(f"num_steps={num_steps!r}: must be one number, or three, one a stage")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}

        def stage(number: int) -> ODEBlock:
            basis = BSplineBasis(num_basis, degree, t_span, knots)
            statistics = None
            if norm == "spline_batch":
                statistics = BSplineBasis(6 if num_statistics is None else num_statistics, 1, t_span, "clamped")
            field = SplineConvField(widths[number], basis, norm=norm, statistics_basis=statistics, **dd)
            return ODEBlock(field, t_span, solver, step_size, steps[number], rtol, atol, sensitivity)

        stem = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False, **dd),
                stage1=stage(0),
                transition1=Transition(widths[0], widths[1], **dd),
                stage2=stage(1),
                transition2=Transition(widths[1], widths[2], **dd),
            )
        )
        super().__init__(
            stage(2),
            num_classes,
            in_chans,
            global_pool,
            drop_rate,
            device,
            dtype,
            family,
            stem=stem,
            level_ends=(2, 4),
            levels=tuple(zip(widths, (1, 2, 4), strict=True)),
            norm=nn.BatchNorm2d(widths[2], **dd),
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise decay: the first convolution, the stages and transitions, the head."""
        stages = r"^stem\.(?:stage|transition)(\d+)"
        return {"stem": r"^stem\.conv1", "blocks": [(stages, None), (r"^block", (3,)), (r"^norm", (99999,))]}


_MNIST = {**MNIST_CFG, "pool_size": (7, 7)}
_CIFAR10 = {**CIFAR10_CFG, "pool_size": (8, 8)}
default_cfgs = generate_default_cfgs(
    tagged_cfgs(_MNIST, "gode3_mnist_xs")
    | tagged_cfgs(_CIFAR10, "gode3_cifar10_xs", "gode3_cifar10_s", "gode3_cifar10_b")
)


@register_model
def gode3_mnist_xs(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Multi-stage GODE for MNIST, 16 to 32 channels, 3 linear B-splines and 6 Euler steps a stage: 87,010 parameters."""
    arguments = {"channels": (16, 20, 28), "in_chans": 1, **kwargs}
    return create(GODE3, "gode3_mnist_xs", pretrained, **arguments)


@register_model
def gode3_cifar10_xs(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Multi-stage GODE for CIFAR-10, 24 to 48 channels, 3 linear B-splines and 6 Euler steps a stage: 270,546 parameters."""
    return create(GODE3, "gode3_cifar10_xs", pretrained, **kwargs)


@register_model
def gode3_cifar10_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Multi-stage GODE for CIFAR-10, 40 to 72 channels, 4 linear B-splines and 8 Euler steps a stage: 852,850 parameters."""
    arguments = {"channels": (40, 64, 72), "num_basis": 4, **_grid(8, kwargs), **kwargs}
    return create(GODE3, "gode3_cifar10_s", pretrained, **arguments)


@register_model
def gode3_cifar10_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Multi-stage GODE for CIFAR-10, 64 to 96 channels, 4 linear B-splines and 8 Euler steps a stage: 1,541,482 parameters."""
    arguments = {"channels": (64, 80, 96), "num_basis": 4, **_grid(8, kwargs), **kwargs}
    return create(GODE3, "gode3_cifar10_b", pretrained, **arguments)


def _grid(num_steps: int, kwargs: dict[str, Any]) -> dict[str, int]:
    """The variant's own number of steps, and as many B-splines for the running statistics where there are any."""
    statistics = {"num_statistics": num_steps} if kwargs.get("norm", "spline_batch") == "spline_batch" else {}
    return own_steps(num_steps, kwargs) | statistics
