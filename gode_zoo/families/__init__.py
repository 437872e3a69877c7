"""Exponential-family outcomes: likelihood, deviance, residuals, samples and intervals, given η, the output of a head.

    E[y] = μ,   g(μ) = η,   Var[y] = φ V(μ)

    family             outcomes                    V(μ)         dispersion       links (the first is the default)
    gaussian           any number                  1            φ = σ²           identity*, log, inverse
    bernoulli          0, 1, or a share between    μ (1 − μ)    φ = 1            logit*, probit, cloglog
    categorical        a class, or C shares        μ (1 − μ)    φ = 1            softmax*
    poisson            0, 1, 2, …                  μ            φ = 1            log*, identity, sqrt
    negative_binomial  0, 1, 2, …                  μ + α μ²     α                log, nbinom*
    gamma              more than 0                 μ²           φ = 1 / shape    log, inverse*, identity

    * canonical. `gamma` and `negative_binomial` start from the logarithm, for their canonical links leave half of all η
    without a mean. `dispersion` means α for the negative binomial (whose φ is 1) and φ for the others.

    family = get_family("poisson")
    loss = family.nll(y, model(x))                          # mean over the outcomes

Shapes: η ``(*s)`` and y ``(*s)``; a last dimension of 1 that η has beyond y is dropped, and nothing else is broadcast.
Categorical: η ``(*s, C)``, y ``(*s)`` of class numbers or ``(*s, C)`` of ones and zeros (or shares that sum to 1).
η is taken in at least float32, y in η's precision.

Source: McCullagh and Nelder, "Generalized Linear Models" (1989); Yu, Miao and Wu, "Neural Generalized Ordinary
Differential Equations with Layer-Varying Parameters", equation 2.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from .base import Family
from .classes import Bernoulli, Categorical
from .continuous import Gamma, Gaussian
from .counts import NegativeBinomial, Poisson

__all__ = [
    "FAMILIES",
    "Bernoulli",
    "Categorical",
    "Family",
    "Gamma",
    "Gaussian",
    "NegativeBinomial",
    "Poisson",
    "get_family",
]

FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (Gaussian, Bernoulli, Categorical, Poisson, NegativeBinomial, Gamma)
}


def get_family(family: str | Mapping[str, Any] | Family) -> Family:
    """The family of a name.

    Args:
        family: a name, a mapping such as ``{"name": "gamma", "link": "log", "dispersion": 0.5}`` (what a recipe or a
            config.json holds), or a family, which is returned as it is.

    Raises:
        ValueError: no such family, with those there are, or settings that it does not have.
    """
    if isinstance(family, Family):
        return family
    options = {"name": family} if isinstance(family, str) else dict(family) if isinstance(family, Mapping) else {}
    name = options.pop("name", None)
    if name not in FAMILIES:
        near = difflib.get_close_matches(str(name), FAMILIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"family={family!r}: must be one of {', '.join(FAMILIES)}{hint}")
    if unknown := options.keys() - {"link", "dispersion"}:
        raise ValueError(f"family={family!r}: unknown {', '.join(sorted(unknown))}; allowed are name, link, dispersion")
    return FAMILIES[name](**options)
