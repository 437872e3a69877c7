"""SpliNet: a dense ODE network whose weights and biases are B-splines of time, decoupled from the steps of the solver.

    x(0) = tanh(K·image + c),    dx/dt = tanh(W(t)·x + b(t)),  0 ≤ t ≤ T,    logits = H·x(T) + h

The opening layer K is a convolution as large as the image, so that it is a dense layer; the state is ``(B, width, 1, 1)``.

Source: Günther, Pazner and Qi, "Spline parameterization of neural network controls for deep learning" (2021). Clamped knots
here, on which B-splines sum to one over the whole span.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..bases import Basis
from ..layers import SplineLinear, combine, time_row
from ..ode_block import ODEBlock
from ..splines import BSplineBasis
from ._classifier import MNIST_CFG, StemBlockHead, cfg, create
from .gode import paper_step_size

__all__ = ["SpliNet", "SplineDenseField"]


class SplineDenseField(nn.Module):
    """``tanh(W(t)·x + b(t))`` on states ``(B, width, 1, 1)``."""

    def __init__(self, width: int, basis: Basis, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.basis = basis
        self.linear = SplineLinear(width, width, basis, device=device, dtype=dtype)

    @torch.jit.unused
    def tabulate(self, times: Tensor) -> Tensor:
        """Basis values of every time: ``(S,)`` to ``(S, m)``."""
        return self.basis(times)

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """Weight ``(width, width)`` and bias ``(width,)`` at every row of the table, a list of S each."""
        weights: list[list[Tensor]] = []
        weights.append(combine(table, self.linear.coeffs).unbind(0))  # type: ignore[arg-type]
        weights.append(combine(table, self.linear.bias_coeffs).unbind(0))  # type: ignore[arg-type]
        return weights

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``."""
        return torch.tanh(F.linear(x.flatten(1), weights[0][stage], weights[1][stage])).view_as(x)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``. ``args`` is torchdyn's and is not used."""
        return self.forward_stage(x, self.stage_weights(time_row(self.basis, t)), 0)


class SpliNet(StemBlockHead):
    """Opening layer, one dense spline ODE block, linear classifier.

    Args:
        num_basis: number m of B-splines.
        degree: their degree k.
        knots: ``"uniform"``, ``"clamped"``, or the knots themselves.
        t_span: (0, T).
        width: size of the state.
        img_size: rows and columns of the images, one integer or two.
        solver: and ``step_size``, ``num_steps``, ``rtol``, ``atol``, ``sensitivity``: as for ``GODE``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        num_basis: int = 5,
        degree: int = 2,
        knots: str | Sequence[float] | Tensor = "clamped",
        t_span: Sequence[float] = (0.0, 1.0),
        width: int = 64,
        img_size: int | tuple[int, int] = 28,
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
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        size = to_2tuple(img_size)
        field = SplineDenseField(width, BSplineBasis(num_basis, degree, t_span, knots), **dd)
        step = paper_step_size(solver, step_size, num_steps)
        block = ODEBlock(field, t_span, solver, step, num_steps, rtol, atol, sensitivity)
        stem = nn.Sequential(OrderedDict(conv1=nn.Conv2d(in_chans, width, size, **dd), act1=nn.Tanh()))
        super().__init__(
            block,
            num_classes,
            in_chans,
            global_pool,
            drop_rate,
            device,
            dtype,
            stem=stem,
            level_ends=(1, 2),
            levels=((width, max(size)),) * 3,
            norm=nn.Identity(),
            act=nn.Identity(),
        )


default_cfgs = generate_default_cfgs({"splinet_mnist": cfg({**MNIST_CFG, "pool_size": (1, 1)}, fixed_input_size=True)})


@register_model
def splinet_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SpliNet for MNIST, a state of 64 and 5 quadratic B-splines: 71,690 parameters."""
    return create(SpliNet, "splinet_mnist", pretrained, **{"in_chans": 1, **kwargs})
