"""ResNet: the paper's baseline, n pre-activation residual blocks between the same stem and head, and the controls.

The controls ask what the ODE block adds: ``resnet1_*`` has one residual block, ``stem_*`` none.

Source: He et al., "Identity Mappings in Deep Residual Networks" (2016), as Yu, Miao and Wu set it up for their Table 1.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..families import Family
from ._classifier import CHANNELS, CIFAR10_CFG, MNIST_CFG, StemBlockHead, create, tagged_cfgs

__all__ = ["ResNet"]


class ResidualBlock(nn.Module):
    """``x + Conv(ReLU(GN(Conv(ReLU(GN(x))))))``, 3×3 convolutions without bias."""

    def __init__(self, channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.GroupNorm(32, channels, **dd)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **dd)
        self.norm2 = nn.GroupNorm(32, channels, **dd)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return x + self.conv2(torch.relu(self.norm2(y)))


class ResidualStack(nn.Module):
    """``num_blocks`` residual blocks, one after another; none is the identity."""

    checkpointing: Final[bool]

    def __init__(self, num_blocks: int, channels: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.Sequential(*(ResidualBlock(channels, device, dtype) for _ in range(num_blocks)))

    @torch.jit.ignore
    def set_checkpointing(self, enable: bool = True) -> None:
        """Compute each block again in the backward pass, or not."""
        self.checkpointing = enable  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class ResNet(StemBlockHead):
    """Stem, ``num_blocks`` pre-activation residual blocks, head.

    Args:
        num_blocks: number of residual blocks, at least 0.
        num_classes: and the other keywords of ``StemBlockHead``.

    Raises:
        ValueError: if num_blocks is negative; TypeError on an unknown keyword.
    """

    def __init__(
        self,
        num_blocks: int = 20,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
        family: str | Mapping[str, Any] | Family = "categorical",
    ) -> None:
        if isinstance(num_blocks, bool) or not isinstance(num_blocks, int) or num_blocks < 0:
            raise ValueError(f"num_blocks={num_blocks!r}: must be an integer of at least 0")
        block = ResidualStack(num_blocks, CHANNELS, device, dtype)
        super().__init__(block, num_classes, in_chans, global_pool, drop_rate, device, dtype, family)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise decay: the stem, each residual block, the final norm and the head."""
        block = r"^block" if coarse else r"^block\.blocks\.(\d+)"
        return {"stem": r"^stem", "blocks": [(block, None), (r"^norm", (99999,))]}


default_cfgs = generate_default_cfgs(
    tagged_cfgs(MNIST_CFG, "resnet6_mnist", "resnet1_mnist", "stem_mnist")
    | tagged_cfgs(CIFAR10_CFG, "resnet20_cifar10", "resnet1_cifar10", "stem_cifar10")
)


@register_model
def resnet6_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Six residual blocks for MNIST: 576,778 parameters."""
    return create(ResNet, "resnet6_mnist", pretrained, **{"num_blocks": 6, "in_chans": 1, **kwargs})


@register_model
def resnet20_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Twenty residual blocks for CIFAR-10: 1,613,706 parameters."""
    return create(ResNet, "resnet20_cifar10", pretrained, **{"num_blocks": 20, **kwargs})


@register_model
def resnet1_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Control for MNIST, one residual block: 206,858 parameters."""
    return create(ResNet, "resnet1_mnist", pretrained, **{"num_blocks": 1, "in_chans": 1, **kwargs})


@register_model
def resnet1_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Control for CIFAR-10, one residual block: 208,010 parameters."""
    return create(ResNet, "resnet1_cifar10", pretrained, **{"num_blocks": 1, **kwargs})


@register_model
def stem_mnist(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Control for MNIST, stem and head with nothing between: 132,874 parameters."""
    return create(ResNet, "stem_mnist", pretrained, **{"num_blocks": 0, "in_chans": 1, **kwargs})


@register_model
def stem_cifar10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Control for CIFAR-10, stem and head with nothing between: 134,026 parameters."""
    return create(ResNet, "stem_cifar10", pretrained, **{"num_blocks": 0, **kwargs})
