"""Galerkin neural ODE: the paper's network with another basis of time than B-splines.

    dx/dt = f(t, x; W(t)),   W(t) = Σ_i B_i(t) ξ_i,   B_i Fourier functions, powers, Chebyshev polynomials or Gaussian bumps

Source: Massaroli et al., "Dissecting Neural ODEs" (2020), section 3, and ``torchdyn.nn.galerkin``; bases.py has the functions.
"""

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..bases import GLOBAL_BASES
from ..fields import SplineConvField
from ..ode_block import ODEBlock
from ._classifier import CHANNELS, MNIST_CFG, StemBlockHead, cfg, create
from .gode import paper_step_size

__all__ = ["GalerkinODE"]


class GalerkinODE(StemBlockHead):
    """The paper's stem, field and head; kernels that are combinations of ``num_basis`` functions of ``basis``.

    Args:
        basis: ``"fourier"``, ``"polynomial"``, ``"chebyshev"`` or ``"rbf"``. For B-splines take ``GODE``.
        num_basis: number m of functions.
        t_span: (0, T).
        num_convs: number L of convolutions in the field.
        solver: and ``step_size``, ``num_steps``, ``rtol``, ``atol``, ``sensitivity``: as for ``GODE``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        basis: str = "fourier",
        num_basis: int = 5,
        t_span: Sequence[float] = (0.0, 1.0),
        num_convs: int = 2,
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
        if basis not in GLOBAL_BASES:
            raise ValueError(f"basis={basis!r}: must be one of {', '.join(GLOBAL_BASES)}; gode_* models have B-splines")
        field = SplineConvField(CHANNELS, GLOBAL_BASES[basis](num_basis, t_span), num_convs, device, dtype)
        step = paper_step_size(solver, step_size, num_steps)
        block = ODEBlock(field, t_span, solver, step, num_steps, rtol, atol, sensitivity)
        super().__init__(block, num_classes, in_chans, global_pool, drop_rate, device, dtype)


default_cfgs = generate_default_cfgs({"galerkin_mnist": cfg(MNIST_CFG)})


@register_model
def galerkin_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Galerkin neural ODE for MNIST, 5 Fourier functions: 501,770 parameters."""
    return create(GalerkinODE, "galerkin_mnist", pretrained, **{"in_chans": 1, **kwargs})
