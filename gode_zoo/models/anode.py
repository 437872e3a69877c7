"""Augmented neural ODE: the state gets channels of zeros before the ODE, so that its paths need not cross.

    x(0) = (stem(image), 0),    dx/dt = Conv₁ₓ₁(ReLU(Conv₃ₓ₃(ReLU(Conv₁ₓ₁(x, t)), t)), t),    constant weights

Each convolution takes time as one more channel.

Source: Dupont, Doucet and Teh, "Augmented Neural ODEs" (2019), the time-dependent convolutional field of its appendix. They
augment the image itself and flatten the final state; here the paper's stem comes first and its head last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..fields import ConcatConv2d
from ..ode_block import ODEBlock
from ._classifier import CHANNELS, MNIST_CFG, StemBlockHead, cfg, create
from .gode import paper_step_size

__all__ = ["AugmentedConvField", "AugmentedODENet"]


class AugmentedConvField(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with ReLU between, each with time as one more channel; ``hidden`` channels within."""

    def __init__(self, channels: int, hidden: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.conv1 = ConcatConv2d(channels, hidden, 1, device, dtype)
        self.conv2 = ConcatConv2d(hidden, hidden, 3, device, dtype)
        self.conv3 = ConcatConv2d(hidden, channels, 1, device, dtype)

    @torch.jit.unused
    def tabulate(self, times: Tensor) -> Tensor:
        """The times themselves: ``(S,)`` to ``(S, 1)``."""
        return times[:, None]

    def stage_weights(self, table: Tensor) -> list[list[Tensor]]:
        """The weights are constant: only the times are handed on."""
        times: list[list[Tensor]] = []
        times.append(table.unbind(0))  # type: ignore[arg-type]
        return times

    def forward_stage(self, x: Tensor, weights: list[list[Tensor]], stage: int) -> Tensor:
        """The field at time number ``stage``."""
        return self._field(weights[0][stage], x)

    @torch.jit.unused
    def forward(self, t: Tensor, x: Tensor, args: Any = None) -> Tensor:
        """dx/dt at time ``t``. ``args`` is torchdyn's and is not used."""
        return self._field(t, x)

    def _field(self, t: Tensor, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(t, x))
        x = torch.relu(self.conv2(t, x))
        return self.conv3(t, x)


class Augment(nn.Module):
    """``num_channels`` channels of zeros after those of the state."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.num_channels))


class AugmentedODENet(StemBlockHead):
    """Stem, channels of zeros, one ODE block with constant weights, head.

    Args:
        augment: channels of zeros, a multiple of 32 (the head's norm has 32 groups); 0 is a Neural-ODE.
        hidden: channels within the field.
        t_span: (0, T).
        solver: and ``step_size``, ``num_steps``, ``rtol``, ``atol``, ``sensitivity``: as for ``GODE``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        augment: int = 32,
        hidden: int = 64,
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
        if augment < 0 or augment % 32 or hidden < 1:
            raise ValueError(f"augment={augment}, hidden={hidden}: need a multiple of 32 (or 0), and at least 1")
        channels = CHANNELS + augment
        field = AugmentedConvField(channels, hidden, device, dtype)
        step = paper_step_size(solver, step_size, num_steps)
        ode = ODEBlock(field, t_span, solver, step, num_steps, rtol, atol, sensitivity)
        super().__init__(
            nn.Sequential(Augment(augment), ode),
            num_classes,
            in_chans,
            global_pool,
            drop_rate,
            device,
            dtype,
            levels=((CHANNELS, 1), (CHANNELS, 2), (channels, 4)),
        )


default_cfgs = generate_default_cfgs({"anode_mnist": cfg(MNIST_CFG)})


@register_model
def anode_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Augmented neural ODE for MNIST, 32 channels of zeros: 183,370 parameters."""
    return create(AugmentedODENet, "anode_mnist", pretrained, **{"in_chans": 1, **kwargs})
