"""Dynamic GODE: a differential equation whose parameters vary with time, seen through exponential-family outcomes.

    dZ/dt = σ(t, Z, θ(t)),   Z(t0) = z(a),   θ_j(t) = Σ_i B_ij(t) c_ij,   g(E[y(t)]) = η(t) = readout(t, Z(t), θ(t))

The right-hand side σ is known; the curves θ_j, as B-splines, and the start a are estimated from outcomes y at irregular
times by penalised likelihood, with penalty λ/2 Σ_j ∫ θ_j''(t)² dt (or of θ'). A parameter that is constant is one with a
basis of one constant function, ``BSplineBasis(1, 0, t_span)``.

    model = GODEModel(sir, "poisson", readout, [BSplineBasis(10, 3, (0, 60), "clamped")])
    fit = model.fit(times, counts, initial_guess=[-6.0], theta_guess=[-1.0])
    fit.theta(grid).low                                     # pointwise bands
    fit.predict(later)                                      # forecast, inside the bases' t_span

The solve is a fixed grid (rk4) that passes through every observation time and every knot, in float64.

Standard errors come from ``V = φ (H + λ S)⁻¹``, H the observed information at φ = 1 and S the penalty's matrix: the
Bayesian covariance, whose pointwise bands hold the truth as often as they say on average over time. Where smoothing
straightens a bent curve, at its beginning above all, it and the start's errors are too small (examples/bands_coverage.py).

Shapes: d states, q curves, r unknowns of the start, n times, J outcomes at a time; β = (c, a) ``(p,)``.

Source: Miao, Wu and Xue, "Generalized Ordinary Differential Equation Models", JASA 109 (2014); Nychka, "Bayesian
Confidence Intervals for Smoothing Splines", JASA 83 (1988).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families import Categorical, Family, NegativeBinomial, get_family
from ..solvers import get_solver, solve_fixed
from ..splines import BSplineBasis
from .fit import DynamicFit, Observed, Plan
from .scoring import Problem, Scored, choose_smoothing, score

__all__ = ["DynamicFit", "GODEModel"]

Rate = Callable[[Tensor, Tensor, Tensor], Tensor]  # (t, z (d,), θ (q,)) → (d,), or η for a readout


class GODEModel:
    """A differential equation with time-varying parameters and an outcome's family.

    Args:
        vector_field: σ, ``(t, z, θ)`` to dz/dt, with t 0-d, z ``(d,)``, θ ``(q,)``, made of torch operations. A positive
            parameter is best written as ``θ.exp()``.
        family: the outcomes', as `get_family` takes it; any but categorical.
        readout: ``(t, z, θ)`` to η, on the link's scale: 0-d, or ``(J,)`` for J outcomes at a time.
        bases: one basis for each curve, all with the same ``t_span``, which starts at t0 and reaches as far as forecasts
            shall.
        initial_state: from the r unknowns a ``(r,)`` to z(t0) ``(d,)``; None where a is z(t0) itself.
        solver: a fixed-step solver's name.
        step_size: longest step; None takes a hundredth of the span.

    Raises:
        ValueError: on a value outside these limits.
    """

    def __init__(
        self,
        vector_field: Rate,
        family: str | Mapping[str, Any] | Family,
        readout: Rate,
        bases: BSplineBasis | Sequence[BSplineBasis],
        initial_state: Callable[[Tensor], Tensor] | None = None,
        solver: str = "rk4",
        step_size: float | None = None,
    ) -> None:
        self.family = get_family(family)
        if isinstance(self.family, Categorical):
            raise ValueError("family='categorical': a dynamic GODE takes families with one η for each outcome")
        self.bases = [bases] if isinstance(bases, BSplineBasis) else list(bases)
        if not self.bases:
            raise ValueError("bases is empty: give one basis for each curve θ_j(t)")
        spans = sorted({basis.t_span for basis in self.bases})
        if len(spans) > 1:
            raise ValueError(f"bases have different spans {spans}: build all with the same t_span")
        self.t_span = spans[0]
        self.tableau = get_solver(solver)
        if self.tableau.adaptive:
            raise ValueError(f"solver={solver!r} chooses its own steps: use euler, midpoint, heun or rk4")
        self.step_size = (self.t_span[1] - self.t_span[0]) / 100 if step_size is None else float(step_size)
        if not math.isfinite(self.step_size) or self.step_size <= 0:
            raise ValueError(f"step_size={step_size!r}: must be positive and finite")
        self.vector_field = vector_field
        self.readout = readout
        self.initial_state = initial_state
        self.sizes = [basis.num_basis for basis in self.bases]

    # -----------------------------------------------------------------------------------------------------------------
    # Solving

    def _plan(self, times: Tensor) -> Plan:
        """Everything about a solve through ``times`` (sorted, distinct) that does not depend on β."""
        t0 = self.t_span[0]
        stops = sorted({t0, *times.tolist(), *(k for b in self.bases for k in b.knot_values if t0 < k < times[-1])})
        grids: list[list[float]] = [[]]
        wanted, stage_times = set(times.tolist()), []
        for left, right in itertools.pairwise(stops):
            steps = max(1, math.ceil((right - left) / self.step_size - 1e-9))
            grid = [left + n * (right - left) / steps for n in range(steps)] + [right]
            grids[-1] += grid if not grids[-1] else grid[1:]
            for a, b in itertools.pairwise(grid):
                # The last stage looks at the curve from the left: a step never sees what lies beyond a jump at its end.
                stage_times += [math.nextafter(b, a) if c == 1.0 else a + c * (b - a) for c in self.tableau.c]
            if right in wanted:
                grids.append([right])
        return Plan(
            [grid for grid in grids if len(grid) > 1],
            float(times[0]) == t0,
            self._designs(torch.tensor(stage_times, dtype=torch.float64)),
            times,
            self._designs(times),
        )

    def _designs(self, times: Tensor) -> list[Tensor]:
        return [basis(times) for basis in self.bases]

    def _split(self, beta: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The curves' coefficients, and the start's unknowns."""
        *coeffs, start = beta.split([*self.sizes, len(beta) - sum(self.sizes)])
        return tuple(coeffs), start

    @staticmethod
    def _curves(designs: Sequence[Tensor], coeffs: Sequence[Tensor]) -> Tensor:
        """θ at a design's times, ``(n, q)``."""
        return torch.stack([design @ c for design, c in zip(designs, coeffs, strict=True)], dim=-1)

    def _states(self, beta: Tensor, plan: Plan) -> Tensor:
        """Z at the plan's times, ``(n, d)``."""
        coeffs, start = self._split(beta)
        z = start if self.initial_state is None else self.initial_state(start)
        rows = iter(self._curves(plan.stage_designs, coeffs).unbind())
        states = [z] if plan.starts_at_t0 else []
        for grid in plan.grids:
            z = solve_fixed(lambda t, state: self.vector_field(t, state, next(rows)), z, grid, self.tableau).x
            states.append(z)
        return torch.stack(states)

    def _eta(self, beta: Tensor, plan: Plan) -> Tensor:
        """η at the plan's times, ``(n, J)``."""
        coeffs, _ = self._split(beta)
        thetas = self._curves(plan.designs, coeffs)
        eta = torch.func.vmap(self.readout)(plan.times, self._states(beta, plan), thetas)
        return eta[:, None] if eta.dim() == 1 else eta

    # -----------------------------------------------------------------------------------------------------------------
    # Fitting

    def fit(
        self,
        times: Tensor | Sequence[float],
        y: Tensor | Sequence[Any],
        initial_guess: Tensor | Sequence[float],
        theta_guess: Tensor | Sequence[float],
        smoothing: str | float = "gcv",
        penalty_order: int = 2,
        dispersion: str | None = None,
    ) -> DynamicFit:
        """Estimate the curves and the start by penalised likelihood.

        Times may come in any order, and repeated: outcomes of one time are independent given Z. An outcome that is NaN
        was not observed and counts for nothing.

        Args:
            times: ``(n,)``, inside the bases' ``t_span``.
            y: outcomes ``(n,)`` or ``(n, J)``.
            initial_guess: a to start from, ``(r,)``.
            theta_guess: θ to start from, constant in time, ``(q,)``.
            smoothing: λ, at least 0; or ``"gcv"``, chosen by generalised cross-validation.
            penalty_order: 2 penalises ``∫ θ''²``, and a curve goes on as a straight line where nothing is observed; 1
                penalises ``∫ θ'²``, and it goes on as a constant, the safer forecast.
            dispersion: ``"moment"`` (the default, of families that have one), ``"likelihood"``, or ``"known"`` for the
                family's own.

        Raises:
            ValueError: shapes, times, outcomes or settings that cannot be right, fewer outcomes than unknowns, or a
                guess from which the solution is not finite.
            RuntimeError: no convergence, or outcomes that do not determine the unknowns.
        """
        observed = self._check_data(times, y)
        guess = _vector("initial_guess", initial_guess)
        theta = _vector("theta_guess", theta_guess, len(self.bases))
        beta = torch.cat([*(_constant(b, v) for b, v in zip(self.bases, theta, strict=True)), guess])
        if observed.y.numel() < len(beta):
            raise ValueError(
                f"{observed.y.numel()} outcomes for {len(beta)} unknowns (num_basis {self.sizes} and {len(guess)} of the "
                "start): observe more, or make num_basis smaller"
            )
        how = self._check_settings(smoothing, penalty_order, dispersion)

        plan = self._plan(observed.times)
        self._check_functions(beta, plan, observed)
        penalty = torch.block_diag(
            *(basis.gram(penalty_order) for basis in self.bases), torch.zeros(len(guess), len(guess))
        )
        penalty = penalty.double()
        if not bool(penalty.any()):
            if not isinstance(smoothing, str) and smoothing > 0:
                raise ValueError(
                    f"smoothing={smoothing}: no basis has a derivative of order {penalty_order} to penalise: raise its degree"
                )
            smoothing = 0.0

        def solve(family: Family, beta: Tensor) -> Scored:
            problem = Problem(observed.y, family, lambda b: observed.pick(self._eta(b, plan)), penalty)
            if not math.isfinite(problem.loss(beta, 0.0)):
                raise ValueError(
                    f"initial_guess={guess.tolist()}, theta_guess={theta.tolist()}: the solution is not finite, or has "
                    "no mean under the link: give other guesses"
                )
            if isinstance(smoothing, str):
                return choose_smoothing(problem, beta, how == "known" or isinstance(family, NegativeBinomial))
            return score(problem, beta, smoothing)

        family = self.family
        result = solve(family, beta)
        if how != "known":
            family = family.with_dispersion(family.estimate_dispersion(observed.y, result.eta, how, result.edf))
            # Of φ the minimum is independent, but α is part of the likelihood's shape: estimated in turn with β.
            for _ in range(20 if isinstance(family, NegativeBinomial) else 0):
                result = solve(family, result.beta)
                before = family.dispersion
                family = family.with_dispersion(family.estimate_dispersion(observed.y, result.eta, how, result.edf))
                if abs(family.dispersion - before) <= 1e-3 * before:
                    break
        if not result.converged:
            raise RuntimeError(
                f"the fit did not converge in {result.num_iterations} steps with smoothing {result.smoothing:.3g}: give "
                "guesses nearer the truth, a larger smoothing, or fewer basis functions"
            )
        return DynamicFit(self, family, result, self._covariance(observed, plan, family, result, penalty), observed)

    def _check_data(self, times: Any, y: Any) -> Observed:
        when = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
        outcomes = torch.as_tensor(y, dtype=torch.float64).detach().cpu()
        if when.dim() != 1 or outcomes.dim() not in (1, 2) or len(outcomes) != len(when) or not len(when):
            raise ValueError(
                f"times has shape {tuple(when.shape)}, y {tuple(outcomes.shape)}: need (n,), and (n,) or (n, J), n at least 1"
            )
        self._check_times(when)
        outcomes = outcomes[:, None] if outcomes.dim() == 1 else outcomes
        seen = ~outcomes.isnan()
        if not bool(seen.any()):
            raise ValueError(f"y holds nothing but NaN ({outcomes.numel()}): at least one outcome must be observed")
        self.family.check(outcomes[seen])
        kept = seen.any(dim=1)
        distinct, place = torch.unique(when[kept], return_inverse=True)
        return Observed(when, outcomes, distinct, place, seen[kept], outcomes[kept][seen[kept]])

    def _check_times(self, times: Tensor) -> None:
        t0, t1 = self.t_span
        bad = ~((times >= t0) & (times <= t1))
        if bool(bad.any()):
            raise ValueError(
                f"times holds {times[bad][0].item()} ({int(bad.sum())} of {len(times)}), outside the bases' "
                f"t_span=({t0}, {t1}): build the bases with a t_span that holds every time"
            )

    def _check_settings(self, smoothing: Any, penalty_order: int, dispersion: str | None) -> str:
        """How the dispersion is found."""
        if smoothing != "gcv" and not (isinstance(smoothing, int | float) and 0 <= smoothing < math.inf):
            raise ValueError(f'smoothing={smoothing!r}: must be "gcv", or a finite number of at least 0')
        if penalty_order not in (1, 2):
            raise ValueError(f"penalty_order={penalty_order!r}: must be 1 or 2")
        allowed = ("moment", "likelihood", "known") if self.family.has_dispersion else ("known",)
        how = allowed[0] if dispersion is None else dispersion
        if how not in allowed:
            raise ValueError(f"dispersion={dispersion!r}: family {self.family.name} takes {', '.join(allowed)}")
        return how

    def _check_functions(self, beta: Tensor, plan: Plan, observed: Observed) -> None:
        """Call each of the user's functions once, where a wrong shape is told best."""
        coeffs, start = self._split(beta)
        z = start if self.initial_state is None else self.initial_state(start)
        theta, t = self._curves(plan.designs, coeffs)[0], plan.times[0]
        rate, eta = self.vector_field(t, z, theta), self.readout(t, z, theta)
        if z.dim() != 1 or rate.shape != z.shape:
            raise ValueError(
                f"vector_field gives shape {tuple(rate.shape)} for a state of shape {tuple(z.shape)}: both must be (d,)"
            )
        outcomes = observed.y_given.shape[1]
        if eta.numel() != outcomes or eta.dim() > 1:
            raise ValueError(
                f"readout gives shape {tuple(eta.shape)}, y has {outcomes} outcomes a time: must be the same"
            )

    def _covariance(self, observed: Observed, plan: Plan, family: Family, result: Scored, penalty: Tensor) -> Tensor:
        def half_deviance(beta: Tensor) -> Tensor:
            return family.deviance(observed.y, observed.pick(self._eta(beta, plan))) / 2

        information = torch.func.hessian(half_deviance)(result.beta.detach()) + result.smoothing * penalty
        information = (information + information.T) / 2
        factor, failed = torch.linalg.cholesky_ex(information)
        scale = information.diagonal().clamp_min(0).sqrt()
        values = torch.linalg.eigvalsh(information / (scale[:, None] * scale).clamp_min(1e-300))
        if int(failed) or float(values[0]) < 1e-12 * float(values[-1]):
            raise RuntimeError(
                f"the outcomes do not determine the {len(result.beta)} unknowns (their information is singular): give a "
                "larger smoothing, fewer basis functions, or a model with fewer unknowns"
            )
        return family.phi * torch.cholesky_inverse(factor)


def _vector(name: str, values: Any, size: int | None = None) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if vector.dim() != 1 or not len(vector) or not bool(vector.isfinite().all()) or size not in (None, len(vector)):
        wanted = "numbers in a list" if size is None else f"{size} of them, one for each curve"
        raise ValueError(f"{name}={values!r}: must be finite {wanted}")
    return vector


def _constant(basis: BSplineBasis, value: Tensor) -> Tensor:
    """Coefficients of the curve that is nearest to a constant."""
    t0, t1 = basis.t_span
    design = basis(torch.linspace(t0, t1, 8 * basis.num_basis, dtype=torch.float64))
    return torch.linalg.lstsq(design, value.expand(len(design))[:, None], driver="gelsd").solution[:, 0]
