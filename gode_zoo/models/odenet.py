"""Neural-ODE: the paper's baseline, one ODE block with constant weights and time as one more channel.

Source: Chen et al., "Neural Ordinary Differential Equations" (2018), as Yu, Miao and Wu set it up for their Table 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..families import Family
from ..fields import ConcatConvField
from ..ode_block import ODEBlock
from ._classifier import CHANNELS, CIFAR10_CFG, MNIST_CFG, StemBlockHead, create, tagged_cfgs
from .gode import paper_step_size

__all__ = ["ODENet"]


class ODENet(StemBlockHead):
    """Neural-ODE (stem, one ODE block with constant weights, head).

    Args:
        t_span: (0, T).
        solver: and ``step_size``, ``num_steps``, ``rtol``, ``atol``, ``sensitivity``: as for ``GODE``.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: on a value that cannot be right; TypeError on an unknown keyword.
    """

    def __init__(
        self,
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
        family: str | Mapping[str, Any] | Family = "categorical",
    ) -> None:
        field = ConcatConvField(CHANNELS, device, dtype)
        step = paper_step_size(solver, step_size, num_steps)
        block = ODEBlock(field, t_span, solver, step, num_steps, rtol, atol, sensitivity)
        super().__init__(block, num_classes, in_chans, global_pool, drop_rate, device, dtype, family)


default_cfgs = generate_default_cfgs(
    tagged_cfgs(MNIST_CFG, "odenet_mnist") | tagged_cfgs(CIFAR10_CFG, "odenet_cifar10")
)


@register_model
def odenet_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Neural-ODE for MNIST: 208,266 parameters."""
    return create(ODENet, "odenet_mnist", pretrained, **{"in_chans": 1, **kwargs})


@register_model
def odenet_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Neural-ODE for CIFAR-10: 209,418 parameters."""
    return create(ODENet, "odenet_cifar10", pretrained, **kwargs)
