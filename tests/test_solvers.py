"""Solvers: tableaus, observed order on time-dependent problems, adaptive error control."""

import dataclasses
import math

import pytest
import torch
import torchdiffeq
from problems import PROBLEMS

from gode_zoo.solvers import SOLVERS, _rooted_trees, fixed_grid, get_solver, solve_adaptive, solve_fixed

ADAPTIVE = [name for name, tableau in SOLVERS.items() if tableau.adaptive]
FIXED = [name for name, tableau in SOLVERS.items() if not tableau.adaptive]


def test_rooted_trees_are_counted_right():
    # OEIS A000081
    assert [len(_rooted_trees(order)) for order in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_changed_coefficient_is_refused(name):
    tableau = SOLVERS[name]
    b = (tableau.b[0] + 1e-6, *tableau.b[1:])
    with pytest.raises(ValueError, match="condition"):
        dataclasses.replace(tableau, b=b)
    with pytest.raises(ValueError, match="condition"):
        dataclasses.replace(tableau, order=tableau.order + 1)
    if len(tableau.c) > 1:
        with pytest.raises(ValueError, match="row 1 of a"):
            dataclasses.replace(tableau, c=(tableau.c[0], tableau.c[1] + 0.01, *tableau.c[2:]))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_observed_order(name, problem):
    """Halving the step divides the error by 2^order, on problems that depend on time."""
    tableau, p = SOLVERS[name], PROBLEMS[problem]
    coarse, fine = (
        (solve_fixed(p.field, p.start, fixed_grid(p.t_span, num_steps=n), tableau).x - p.end).abs().max().item()
        for n in (40, 80)
    )
    assert math.log2(coarse / fine) == pytest.approx(tableau.order, abs=0.35)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
def test_adaptive_error_follows_the_tolerance(name, problem, tolerance):
    p = PROBLEMS[problem]
    solution = solve_adaptive(p.field, p.start, p.t_span, SOLVERS[name], tolerance, tolerance)
    assert (solution.x - p.end).abs().max() < 30 * tolerance
    assert solution.num_accepted > 1


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_goes_backwards(name):
    p = PROBLEMS["forced"]
    back = solve_adaptive(p.field, p.end, p.t_span[::-1], SOLVERS[name], 1e-9, 1e-9)
    torch.testing.assert_close(back.x, p.start, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_nfe_is_the_number_of_calls(name):
    p, calls = PROBLEMS["nonlinear"], []

    def counted(t, x):
        calls.append(float(t))
        return p.field(t, x)

    if SOLVERS[name].adaptive:
        solution = solve_adaptive(counted, p.start, p.t_span, SOLVERS[name], 1e-6, 1e-6)
    else:
        solution = solve_fixed(counted, p.start, fixed_grid(p.t_span, num_steps=7), SOLVERS[name])
    assert solution.nfe == len(calls)
    assert max(calls) <= p.t_span[1]


def test_rk4_and_dopri5_agree_with_torchdiffeq():
    p = PROBLEMS["forced"]
    times = torch.tensor(p.t_span, dtype=torch.float64)
    theirs = torchdiffeq.odeint(p.field, p.start, times, method="dopri5", rtol=1e-10, atol=1e-10)[-1]
    ours = solve_adaptive(p.field, p.start, p.t_span, SOLVERS["dopri5"], 1e-10, 1e-10).x
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)
    theirs = torchdiffeq.odeint(p.field, p.start, times, method="midpoint", options={"step_size": 0.1})[-1]
    ours = solve_fixed(p.field, p.start, fixed_grid(p.t_span, step_size=0.1), SOLVERS["midpoint"]).x
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_fixed_grid():
    assert fixed_grid((0.0, 1.0), step_size=0.05) == pytest.approx([n / 20 for n in range(21)])
    assert fixed_grid((0.0, 1.0), step_size=0.3) == pytest.approx([0, 0.3, 0.6, 0.9, 1.0])
    assert fixed_grid((0.0, 3.0), step_size=0.05)[-1] == 3.0 and len(fixed_grid((0.0, 3.0), step_size=0.05)) == 61
    assert fixed_grid((0.0, 1.0), step_size=7.0) == (0.0, 1.0)
    assert fixed_grid((1.0, 2.0), num_steps=2) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"step_size": 0.1, "num_steps": 3}, "exactly one"),
        ({"step_size": 0.0}, "step_size=0.0.*positive"),
        ({"step_size": math.nan}, "finite"),
        ({"num_steps": 0}, "num_steps=0.*at least 1"),
        ({"num_steps": 2.0}, "integer"),
    ],
)
def test_bad_grids_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fixed_grid((0.0, 1.0), **arguments)


def test_unknown_solver_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"solver='rk45'.*euler.*tsit5"):
        get_solver("rk45")


def test_adaptive_says_when_it_cannot_go_on():
    with pytest.raises(RuntimeError, match=r"reached t=.*loosen rtol"):
        solve_adaptive(
            lambda t, x: 1000 * torch.cos(1000 * t) * x, torch.ones(1), (0.0, 1.0), SOLVERS["dopri5"], 1e-8, 1e-8, 20
        )
    blows_up = torch.full((1,), 2.0, dtype=torch.float64)  # x' = x² from 2 has no solution beyond t = 1/2
    with pytest.raises(RuntimeError, match=r"dopri5.*t=0\.(49|5)"):
        solve_adaptive(lambda t, x: x * x, blows_up, (0.0, 1.0), SOLVERS["dopri5"], 1e-6, 1e-6)
