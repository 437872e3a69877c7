"""ContinuousNet and Stateful ODE-Net: three ODE stages of rising width, with batch norms that vary with time.

    stage    dx/dt = Conv(ReLU(BN(Conv(ReLU(BN(x; t)); W_1(t)); t)); W_2(t)),  0 ≤ t ≤ 1, BN with its statistics of time t
    stitch   x + 1×1 Conv: as a stage's right-hand side, with half the rows and columns and twice the channels

    image → Conv 3×3, BN, ReLU → stage (a) → stitch → stage (2a) → stitch → stage (4a) → BN → pool → linear

ContinuousNet is degree 0: each of m pieces is a residual block with weights and batch norms of its own, and with as many
Euler steps as pieces the net is a residual network. Stateful ODE-Net takes splines of higher degree, in which running
statistics are kept too (``SplineBatchNorm2d``); ``surgery.compress`` projects it onto fewer basis functions.

Source: Queiruga et al., "Continuous-in-Depth Neural Networks" (2020); Queiruga et al., "Stateful ODE-Nets using Basis
Function Expansions" (2021). Theirs draws weights by Kaiming's normal initialisation; here by ``SplineConv2d``'s.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..fields import SplineConvField
from ..ode_block import ODEBlock
from ..solvers import get_solver
from ..splines import BSplineBasis
from ._classifier import CIFAR10_CFG, MNIST_CFG, StemBlockHead, cfg, create, own_steps

__all__ = ["ContinuousNet"]


class Stitch(nn.Module):
    """``Conv₁ₓ₁(x) + Conv(ReLU(BN(Conv(ReLU(BN(x))))))``: half the rows and columns, twice the channels."""

    def __init__(self, channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.BatchNorm2d(channels, **dd)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(channels, **dd)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False, **dd)
        self.shortcut = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(torch.relu(self.norm2(y)))


class ContinuousNet(StemBlockHead):
    """Three ODE stages with weights and batch norms that vary with time.

    Args:
        num_basis: number m of B-splines of each stage.
        degree: their degree k; 0 is ContinuousNet, above it Stateful ODE-Net.
        knots: ``"clamped"``, or other knots on which the B-splines sum to one.
        channels: channels a of the first stage; the next have 2a and 4a.
        solver: euler, midpoint, heun, rk4, dopri5 or tsit5.
        step_size: step of a fixed grid, on 0 ≤ t ≤ 1.
        num_steps: number of steps of a fixed grid; 4 where neither it nor ``step_size`` is given.
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver.
        sensitivity: ``"autograd"`` or ``"checkpoint"``, which moves the running statistics twice an update.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        num_basis: int = 4,
        degree: int = 0,
        knots: str | Sequence[float] | Tensor = "clamped",
        channels: int = 16,
        solver: str = "euler",
        step_size: float | None = None,
        num_steps: int | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        sensitivity: str = "autograd",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if sensitivity == "adjoint":
            raise ValueError(
                'sensitivity="adjoint" with batch norm: the backward solve would normalise by other states and move the '
                'running statistics; use "autograd" or "checkpoint"'
            )
        if step_size is None and num_steps is None and not get_solver(solver).adaptive:
            num_steps = 4
        dd: dict[str, Any] = {"device": device, "dtype": dtype}

        def stage(width: int) -> ODEBlock:
            basis = BSplineBasis(num_basis, degree, knots=knots)
            field = SplineConvField(width, basis, norm="spline_batch", **dd)
            return ODEBlock(field, (0.0, 1.0), solver, step_size, num_steps, rtol, atol, sensitivity)

        stem = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_chans, channels, 3, padding=1, bias=False, **dd),
                norm1=nn.BatchNorm2d(channels, **dd),
                act1=nn.ReLU(),
                stage1=stage(channels),
                stitch1=Stitch(channels, **dd),
                stage2=stage(2 * channels),
                stitch2=Stitch(2 * channels, **dd),
            )
        )
        super().__init__(
            stage(4 * channels),
            num_classes,
            in_chans,
            global_pool,
            drop_rate,
            device,
            dtype,
            stem=stem,
            level_ends=(4, 6),
            levels=((channels, 1), (2 * channels, 2), (4 * channels, 4)),
            norm=nn.BatchNorm2d(4 * channels, **dd),
            act=nn.Identity(),  # theirs pools right after the norm
        )

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise decay: the first convolution, the stages and stitches, the head."""
        stages = r"^stem\.(?:stage|stitch)(\d+)"
        return {"stem": r"^stem\.(?:conv1|norm1)", "blocks": [(stages, None), (r"^block", (3,)), (r"^norm", (99999,))]}


_MNIST = cfg({**MNIST_CFG, "pool_size": (7, 7)})
_CIFAR10 = cfg({**CIFAR10_CFG, "pool_size": (8, 8)})
default_cfgs = generate_default_cfgs(
    {
        "continuousnet_mnist": _MNIST,
        "continuousnet_cifar10": _CIFAR10,
        "statefulnet_mnist": _MNIST,
        "statefulnet_cifar10": _CIFAR10,
    }
)


@register_model
def continuousnet_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ContinuousNet for MNIST, 4 pieces and 4 Euler steps a stage: 427,130 parameters."""
    return create(ContinuousNet, "continuousnet_mnist", pretrained, **{"in_chans": 1, **kwargs})


@register_model
def continuousnet_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ContinuousNet for CIFAR-10, 8 pieces and 8 Euler steps a stage: 816,282 parameters."""
    arguments = {"num_basis": 8, **own_steps(8, kwargs), **kwargs}
    return create(ContinuousNet, "continuousnet_cifar10", pretrained, **arguments)


@register_model
def statefulnet_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stateful ODE-Net for MNIST, 4 linear B-splines and 4 Euler steps a stage: 427,130 parameters."""
    return create(ContinuousNet, "statefulnet_mnist", pretrained, **{"degree": 1, "in_chans": 1, **kwargs})


@register_model
def statefulnet_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Stateful ODE-Net for CIFAR-10, 8 linear B-splines and 8 Euler steps a stage: 816,282 parameters."""
    arguments = {"num_basis": 8, "degree": 1, **own_steps(8, kwargs), **kwargs}
    return create(ContinuousNet, "statefulnet_cifar10", pretrained, **arguments)
