"""Neural ODEs whose weights are B-splines of time: a torchdyn plugin and a timm-style model zoo.

Importing it registers the models with timm. ``gode_zoo.torchdyn`` is imported on its own, since torchdyn takes seconds.
"""

from . import models
from .bases import Basis, ChebyshevBasis, FourierBasis, PolynomialBasis, RBFBasis
from .dynamic import GODEModel
from .families import get_family
from .fields import ConcatConvField, LiftedField, SplineConvField, lift
from .hugging_face.download import download
from .hugging_face.publish import publish
from .layers import SplineConv2d, SplineGroupNorm, SplineLinear
from .ode_block import ODEBlock
from .solvers import SOLVERS, Solution, Tableau
from .splines import BSplineBasis

__version__ = "0.1.0"

__all__ = [
    "SOLVERS",
    "BSplineBasis",
    "Basis",
    "ChebyshevBasis",
    "ConcatConvField",
    "FourierBasis",
    "GODEModel",
    "LiftedField",
    "ODEBlock",
    "PolynomialBasis",
    "RBFBasis",
    "Solution",
    "SplineConv2d",
    "SplineConvField",
    "SplineGroupNorm",
    "SplineLinear",
    "Tableau",
    "__version__",
    "download",
    "get_family",
    "lift",
    "models",
    "publish",
]
