"""The zoo's architectures. Importing this package registers them with timm."""

from .gode import GODE
from .odenet import ODENet
from .resnet import ResNet

__all__ = ["GODE", "ODENet", "ResNet"]
