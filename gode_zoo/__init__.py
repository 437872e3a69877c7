"""Neural ODEs whose weights are B-splines of time: a torchdyn plugin and a timm-style model zoo.

Importing it registers the models with timm. ``gode_zoo.torchdyn`` is imported on its own, since torchdyn takes seconds.
"""

from . import models
from .dynamic import GODEModel
from .families import get_family
from .fields import ConcatConvField, LiftedField, SplineConvField, lift
from .layers import SplineConv2d, SplineGroupNorm, SplineLinear
from .ode_block import ODEBlock
from .solvers import SOLVERS, Solution, Tableau
from .splines import BSplineBasis

__version__ = "0.1.0"

__all__ = [
    "SOLVERS",
    "BSplineBasis",
    "ConcatConvField",
    "GODEModel",
    "LiftedField",
    "ODEBlock",
    "Solution",
    "SplineConv2d",
    "SplineConvField",
    "SplineGroupNorm",
    "SplineLinear",
    "Tableau",
    "__version__",
    "get_family",
    "lift",
    "models",
]
