"""Penalised Fisher scoring: coefficients β of a predictor η(β) that need not be linear, and how smooth they shall be.

    minimise  D(β) / 2 + λ/2 βᵀ S β,    D the deviance of exponential-family outcomes, S the penalty's matrix

A step solves ``(Jᵀ W J + λ S + μ diag) δ = −gradient`` with J = ∂η/∂β and W the Fisher weights at φ = 1; μ is
Levenberg's and Marquardt's damping. λ is chosen by generalised cross-validation, ``n D / (n − 1.4 edf)²``, or where
the dispersion is known by its form for that, ``D + 2.8 φ edf``, with ``edf = tr((Jᵀ W J + λ S)⁻¹ Jᵀ W J)``.

Shapes: β ``(p,)``, η and y ``(n,)``, J ``(n, p)``, S ``(p, p)``; all float64.

Source: Green and Silverman, "Nonparametric Regression and Generalized Linear Models" (1994), chapter 5; Wood, "Generalized
Additive Models" (2017), sections 6.1 to 6.2; Kim and Gu, JRSS B 66 (2004), for the factor 1.4;
Marquardt, SIAM Journal 11 (1963).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..families import Family

__all__ = ["Problem", "Scored", "choose_smoothing", "score"]

_DECADES = tuple(float(decade) for decade in range(4, -8, -1))  # of λ, relative to its scale
_CAUTION = 1.4  # factor on edf: plain cross-validation now and then follows the noise
_MOST_STEPS = 200


@dataclass(frozen=True)
class Problem:
    """Outcomes, their family, and the predictor as a function of β."""

    y: Tensor
    family: Family
    predictor: Callable[[Tensor], Tensor]
    penalty: Tensor

    def loss(self, beta: Tensor, smoothing: float) -> float:
        """The penalised loss; infinite where the predictor is not finite or has no mean."""
        return self._loss_of(self.predictor(beta), beta, smoothing)

    def _loss_of(self, eta: Tensor, beta: Tensor, smoothing: float) -> float:
        if not bool((eta.isfinite() & self.family.link.valid(eta)).all()):
            return math.inf
        value = float(self.family.deviance(self.y, eta) + smoothing * beta @ self.penalty @ beta) / 2
        return value if math.isfinite(value) else math.inf

    def linearise(self, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """η, the gradient ∂(D/2)/∂β and the Fisher matrix JᵀWJ at β."""
        jacobian, eta = torch.func.jacrev(lambda b: (self.predictor(b),) * 2, has_aux=True)(beta)
        leaf = eta.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.family.deviance(self.y, leaf) / 2, leaf)
        unit = self.family.with_dispersion(1.0) if self.family.phi != 1.0 else self.family
        weights = unit.information(eta)
        return eta, jacobian.T @ slope, jacobian.T @ (weights[:, None] * jacobian)


@dataclass(frozen=True)
class Scored:
    """Where a minimisation came to."""

    beta: Tensor
    eta: Tensor
    smoothing: float
    deviance: float
    edf: float
    converged: bool
    num_iterations: int


def score(problem: Problem, beta: Tensor, smoothing: float, tolerance: float = 1e-14) -> Scored:
    """Minimise from a start ``beta`` at which the loss is finite.

    It ends where the Newton decrement, which is twice what can still be gained, is ``tolerance`` times the loss.
    """
    loss, damping, converged = problem.loss(beta, smoothing), 1e-3, False
    eta, gradient, fisher = problem.linearise(beta)
    for iteration in range(_MOST_STEPS):  # noqa: B007
        slope = gradient + smoothing * problem.penalty @ beta
        curvature = fisher + smoothing * problem.penalty
        # Without damping the decrement says how far the minimum is; a singular matrix has none.
        decrement = _decrement(curvature, slope)
        converged = decrement < tolerance * (1 + abs(loss))
        diagonal = curvature.diagonal().clamp_min(1e-12 * float(curvature.diagonal().max()) + 1e-300)
        lower = False
        while not converged and not lower and damping < 1e12:
            factor, failed = torch.linalg.cholesky_ex(curvature + (damping * diagonal).diag())
            trial = beta - torch.cholesky_solve(slope[:, None], factor)[:, 0]
            trial_loss = math.inf if int(failed) else problem.loss(trial, smoothing)
            lower = trial_loss < loss
            damping = max(damping / 5, 1e-12) if lower else 4 * damping
        if not lower:  # at the minimum, or as near as rounding lets the loss see
            converged = converged or decrement < 1e-6 * (1 + abs(loss))
            break
        beta, loss = trial, trial_loss
        eta, gradient, fisher = problem.linearise(beta)
    edf = _effective_parameters(fisher, smoothing * problem.penalty)
    deviance = float(problem.family.deviance(problem.y, eta))
    return Scored(beta, eta, smoothing, deviance, edf, converged, iteration)


def _decrement(curvature: Tensor, slope: Tensor) -> float:
    factor, failed = torch.linalg.cholesky_ex(curvature)
    return math.inf if int(failed) else float(slope @ torch.cholesky_solve(slope[:, None], factor)[:, 0])


def _effective_parameters(fisher: Tensor, penalty: Tensor) -> float:
    return float(torch.linalg.lstsq(fisher + penalty, fisher, driver="gelsd").solution.trace())


def choose_smoothing(problem: Problem, beta: Tensor, known_dispersion: bool) -> Scored:
    """The minimisation at the λ that generalised cross-validation chooses, from a start ``beta``.

    Decades from smooth to rough, each started where the last came to, then golden sections around the best of them.
    Its scale is the ratio of the Fisher matrix's trace to the penalty's.
    """
    from scipy.optimize import minimize_scalar

    count = problem.y.numel()
    _, _, fisher = problem.linearise(beta)
    penalised = problem.penalty.diagonal() > 0
    scale = float(fisher.diagonal()[penalised].sum() / problem.penalty.trace())
    tried: dict[float, Scored] = {}

    def criterion(log_smoothing: float) -> float:
        near = min(tried, key=lambda other: abs(other - log_smoothing), default=None)
        start = beta if near is None else tried[near].beta
        result = score(problem, start, scale * 10.0**log_smoothing, 1e-9)
        if result.converged:
            tried[log_smoothing] = result
        if known_dispersion:
            return result.deviance + 2 * _CAUTION * problem.family.phi * result.edf
        return count * result.deviance / max(count - _CAUTION * result.edf, 1e-9) ** 2

    values: dict[float, float] = {}
    for decade in _DECADES:
        values[decade] = criterion(decade)
        if min(list(values.values())[-3:]) > min(values.values()) * (1 + 1e-6):
            break  # three decades running were worse: rougher curves only overfit more
    best = min(values, key=values.__getitem__)
    found = minimize_scalar(criterion, bounds=(best - 1, best + 1), method="bounded", options={"xatol": 0.03})
    chosen = float(found.x) if found.fun <= values[best] else best
    if best == _DECADES[-1]:
        warnings.warn(
            f"the chosen smoothing {scale * 10**chosen:.3g} lies at the rough end of what was tried: the outcomes may not "
            "determine the curve; use fewer basis functions, or give smoothing a number",
            UserWarning,
            stacklevel=3,
        )
    return score(problem, tried[chosen].beta if chosen in tried else beta, scale * 10.0**chosen)
