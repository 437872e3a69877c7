"""The zoo's architectures. Importing this package registers them with timm."""

from .anode import AugmentedODENet
from .anodev2 import ANODEV2
from .continuousnet import ContinuousNet
from .galerkin import GalerkinODE
from .gode import GODE
from .gode3 import GODE3
from .odenet import ODENet
from .resnet import ResNet
from .splinet import SpliNet

__all__ = [
    "ANODEV2",
    "GODE",
    "GODE3",
    "AugmentedODENet",
    "ContinuousNet",
    "GalerkinODE",
    "ODENet",
    "ResNet",
    "SpliNet",
]
