"""Neural-GODE: the paper's network, one ODE block whose convolution kernels are B-splines of time.

    dx/dt = f(t, x; W(t)),   W(t) = Σ_i B_{i,k}(t) ξ_i,   0 ≤ t ≤ T

Source: Yu, Miao and Wu, "Neural Generalized Ordinary Differential Equations with Layer-Varying Parameters". Names:
``gode_<data set>_m<number of basis functions>``. Their checkpoints load through ``checkpoint_filter_fn``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..families import Family
from ..fields import SplineConvField
from ..ode_block import ODEBlock
from ..solvers import get_solver
from ..splines import BSplineBasis
from ._classifier import CHANNELS, CIFAR10_CFG, MNIST_CFG, StemBlockHead, create, tagged_cfgs

__all__ = ["GODE"]

PAPER_STEP_SIZE = 0.05


def paper_step_size(solver: str, step_size: float | None, num_steps: int | None) -> float | None:
    """The step size to use: the paper's 0.05 where a fixed-grid solver was given neither a step nor a number."""
    if step_size is None and num_steps is None and not get_solver(solver).adaptive:
        return PAPER_STEP_SIZE
    return step_size


class GODE(StemBlockHead):
    """Neural-GODE (stem, one spline ODE block, head).

    Args:
        num_basis: number m of B-splines.
        degree: their degree k.
        knots: ``"uniform"`` (the paper's), ``"clamped"``, or the knots themselves.
        t_span: (0, T).
        num_convs: number L of spline convolutions in the field.
        norm: ``"group"``, the paper's, shared by all times; ``"spline_group"`` or ``"spline_batch"``, which vary with time.
        solver: euler, midpoint, heun, rk4, leapfrog, dopri5 or tsit5.
        step_size: step of a fixed grid; 0.05, the paper's, where neither it nor ``num_steps`` is given.
        num_steps: number of steps of a fixed grid.
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver.
        sensitivity: ``"autograd"``, ``"checkpoint"``, ``"reversible"`` or ``"adjoint"``; see ``ODEBlock``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        num_basis: int = 8,
        degree: int = 1,
        knots: str | Sequence[float] | Tensor = "uniform",
        t_span: Sequence[float] = (0.0, 1.0),
        num_convs: int = 2,
        norm: str = "group",
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
        family: str | Mapping[str, Any] | Family = "categorical",
    ) -> None:
        basis = BSplineBasis(num_basis, degree, t_span, knots)
        block = ODEBlock(
            SplineConvField(CHANNELS, basis, num_convs, device, dtype, norm),
            t_span,
            solver,
            paper_step_size(solver, step_size, num_steps),
            num_steps,
            rtol,
            atol,
            sensitivity,
        )
        super().__init__(block, num_classes, in_chans, global_pool, drop_rate, device, dtype, family)


# The authors' checkpoints are plain sequences of layers: stem 0-6, field 7, head norm 8, linear 12.
_AUTHORS_STEM = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2", "6": "conv3"}


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the keys of an authors' checkpoint; our own pass as they are.

    =====================================  ==========================
    authors' key (any prefix before it)    ours
    =====================================  ==========================
    ``c1`` … ``cL``                        ``block.field.convs.{i−1}.coeffs``
    ``norm1.weight`` … ``normL.bias``      ``block.field.norms.{i−1}.weight`` …
    =====================================  ==========================

    The spline coefficients have the same shape, (64, 64, 3, 3, m), in both.
    """
    if not any(re.search(r"(^|\.)c\d+$", key) for key in state_dict):
        return state_dict
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if match := re.search(r"(?:^|\.)c(\d+)$", key):
            renamed[f"block.field.convs.{int(match[1]) - 1}.coeffs"] = value
        elif match := re.search(r"(?:^|\.)norm(\d+)\.(weight|bias)$", key):
            renamed[f"block.field.norms.{int(match[1]) - 1}.{match[2]}"] = value
        else:
            renamed[_sequential_key(key)] = value
    return renamed


def _sequential_key(key: str) -> str:
    """The name of a layer outside the block in an authors' checkpoint, by its place in the sequence."""
    match = re.search(r"(?:^|\.)(\d+)\.(weight|bias)$", key)
    if not match:
        return key
    number, kind = match.groups()
    if number in _AUTHORS_STEM:
        return f"stem.{_AUTHORS_STEM[number]}.{kind}"
    return f"norm.{kind}" if number == "8" else f"head.fc.{kind}"


default_cfgs = generate_default_cfgs(
    tagged_cfgs(MNIST_CFG, "gode_mnist_m4") | tagged_cfgs(CIFAR10_CFG, "gode_cifar10_m8")
)


@register_model
def gode_mnist_m4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Neural-GODE for MNIST, 4 linear B-splines: 428,042 parameters."""
    arguments = {"num_basis": 4, "in_chans": 1, **kwargs}
    return create(GODE, "gode_mnist_m4", pretrained, checkpoint_filter_fn, **arguments)


@register_model
def gode_cifar10_m8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Neural-GODE for CIFAR-10, 8 linear B-splines: 724,106 parameters."""
    return create(GODE, "gode_cifar10_m8", pretrained, checkpoint_filter_fn, **{"num_basis": 8, **kwargs})
