"""ANODEV2: weights that follow an ordinary differential equation of their own, coupled to the state's.

    dx/dt = Conv(ReLU(GN(Conv(ReLU(GN(x)); W_1(t)))); W_2(t)),    dW_i/dt = tanh(τ ΔW_i + v·∇W_i + ρ W_i),    W_i(0) learned

Reaction (ρ), diffusion (τ) and advection (v) act on each kernel's 3×3 grid, of spacing 1, with central differences and no
flux through its border. The four rates are learned for each convolution and are 0 at first: W is then constant, a
Neural-ODE. The kernel at time t comes from ``weight_steps`` steps of the classical Runge–Kutta method from 0 to t.

Source: Zhang et al., "ANODEV2: A Coupled Neural ODE Framework" (2019), its reaction-diffusion-advection equation for the
weights; theirs steps weights and state together, by Euler.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..ode_block import ODEBlock
from ._classifier import CHANNELS, MNIST_CFG, StemBlockHead, cfg, create
from .gode import paper_step_size

__all__ = ["ANODEV2", "EvolvingConv2d", "EvolvingConvField"]


class EvolvingConv2d(nn.Module):
    """A 3×3 convolution (padding 1, no bias) whose kernel follows an ODE from ``start`` on.

    Args:
        channels: channels in and out.
        t0: time at which the kernel is ``start``.
        weight_steps: Runge–Kutta steps from t0 to any time, at least 1.

    Attributes:
        start: ``(channels, channels, 3, 3)``.
        rates: ρ, τ, v down the rows, v along the columns.
    """

    def __init__(self, channels: int, t0: float, weight_steps: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if isinstance(weight_steps, bool) or not isinstance(weight_steps, int) or weight_steps < 1:
            raise ValueError(f"weight_steps={weight_steps!r}: must be an integer of at least 1")
        self.t0, self.weight_steps = t0, weight_steps
        self.start = nn.Parameter(torch.empty(channels, channels, 3, 3, device=device, dtype=dtype))
        self.rates = nn.Parameter(torch.zeros(4, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.start, a=5**0.5)  # as torch.nn.Conv2d

    def evolution(self) -> Tensor:
        """The linear part of the kernels' equation as a matrix ``(9, 9)``: row j is what it makes of the unit kernel j."""
        unit = torch.eye(9, dtype=self.rates.dtype, device=self.rates.device).view(9, 1, 3, 3)
        padded = F.pad(unit, (1, 1, 1, 1), mode="replicate")
        above, below = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
        left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
        laplacian = above + below + left + right - 4 * unit
        advection = self.rates[2] * (below - above) / 2 + self.rates[3] * (right - left) / 2
        return (self.rates[1] * laplacian + advection + self.rates[0] * unit).view(9, 9)

    def kernels_at(self, times: Tensor) -> Tensor:
        """Kernels of every time: ``(S, 1)`` to ``(S, C, C, 3, 3)``; all times are stepped at once."""
        matrix = self.evolution()
        step = ((times - self.t0) / self.weight_steps).to(self.start.dtype).view(-1, 1, 1)
        kernels = self.start.reshape(1, -1, 9).expand(times.shape[0], -1, -1)
        for _ in range(self.weight_steps):
            k1 = torch.tanh(kernels @ matrix)
            k2 = torch.tanh((kernels + step / 2 * k1) @ matrix)
            k3 = torch.tanh((kernels + step / 2 * k2) @ matrix)
            k4 = torch.tanh((kernels + step * k3) @ matrix)
            kernels = kernels + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return kernels.unflatten(1, self.start.shape[:2]).unflatten(3, (3, 3))


class EvolvingConvField(nn.Module):
    """Twice GroupNorm–ReLU–EvolvingConv2d; the norms are shared by all times."""

    def __init__(self, channels: int, t0: float, weight_steps: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        groups = min(32, channels)
        self.norm1 = nn.GroupNorm(groups, channels, **dd)
        self.conv1 = EvolvingConv2d(channels, t0, weight_steps, **dd)
        self.norm2 = nn.GroupNorm(groups, channels, **dd)
        self.conv2 = EvolvingConv2d(channels, t0, weight_steps, **dd)

    @torch.jit.unused
    def tabulate(self, times: Tensor) -> Tensor:
        """The times themselves: ``(S,)`` to ``(S, 1)``."""
        return times[:, None]

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """The kernels ``(C, C, 3, 3)`` of both convolutions, a list of S each."""
        weights: list[list[Tensor]] = []
        weights.append(self.conv1.kernels_at(table).unbind(0))  # type: ignore[arg-type]
        weights.append(self.conv2.kernels_at(table).unbind(0))  # type: ignore[arg-type]
        return weights

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``."""
        x = F.conv2d(torch.relu(self.norm1(x)), weights[0][stage], padding=1)
        return F.conv2d(torch.relu(self.norm2(x)), weights[1][stage], padding=1)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``. ``args`` is torchdyn's and is not used."""
        return self.forward_stage(x, self.stage_weights(t.reshape(1, 1)), 0)


class ANODEV2(StemBlockHead):
    """The paper's stem and head around an ODE block whose weights follow an ODE of their own.

    Args:
        weight_steps: Runge–Kutta steps of the weights' equation from 0 to any time.
        t_span: (0, T).
        solver: and ``step_size``, ``num_steps``, ``rtol``, ``atol``, ``sensitivity``: as for ``GODE``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        weight_steps: int = 4,
        t_span: Sequence[float] = (0.0, 1.0),
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
        field = EvolvingConvField(CHANNELS, float(t_span[0]), weight_steps, device, dtype)
        step = paper_step_size(solver, step_size, num_steps)
        block = ODEBlock(field, t_span, solver, step, num_steps, rtol, atol, sensitivity)
        super().__init__(block, num_classes, in_chans, global_pool, drop_rate, device, dtype)


default_cfgs = generate_default_cfgs({"anodev2_mnist": cfg(MNIST_CFG)})


@register_model
def anodev2_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ANODEV2 for MNIST: 206,866 parameters."""
    return create(ANODEV2, "anodev2_mnist", pretrained, **{"in_chans": 1, **kwargs})
