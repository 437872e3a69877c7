"""ODEBlock: equal to torchdiffeq, the times of its calls, every sensitivity's gradient, refused pairs."""

import copy
import warnings

import pytest
import torch
import torchdiffeq
from problems import Field
from torch.autograd import gradcheck

from gode_zoo import BSplineBasis, ConcatConvField, ODEBlock, SplineConvField, lift
from gode_zoo.ode_block import _segments


def spline_field(degree=1, knots="uniform", t_span=(0.0, 1.0), num_convs=2, channels=8):
    torch.manual_seed(1)
    field = SplineConvField(channels, BSplineBasis(6, degree, t_span, knots), num_convs)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return field


def fields():
    torch.manual_seed(2)
    convolution = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Tanh())
    return {
        "spline": spline_field(),
        "one conv": spline_field(num_convs=1),
        "concat": ConcatConvField(8),
        "lifted": lift(convolution, BSplineBasis(4, 2, knots="clamped")),
    }


FIELDS = fields()
STATE = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "leapfrog"])
def test_tabulated_solve_equals_calling_the_field(name, solver):
    block = ODEBlock(FIELDS[name], solver=solver, num_steps=7)
    with torch.no_grad():
        torch.testing.assert_close(block(STATE), block.solve(STATE).x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_equals_torchdiffeq(name, method):
    block = ODEBlock(copy.deepcopy(FIELDS[name]), solver=method, step_size=0.05).double()
    x = STATE.double()
    with torch.no_grad():
        times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        theirs = torchdiffeq.odeint(block.field, x, times, method=method, options={"step_size": 0.05})[-1]
        torch.testing.assert_close(block(x), theirs, atol=1e-6, rtol=0)


def test_euler_calls_the_field_twenty_times_at_the_left_ends():
    field = Field()
    ODEBlock(field, step_size=0.05)(torch.zeros(1, 3))
    assert field.times == pytest.approx([n / 20 for n in range(20)], abs=1e-7)
    assert ODEBlock(spline_field(), step_size=0.05).times == pytest.approx([n / 20 for n in range(20)], abs=1e-12)


def test_rk4_shares_the_times_of_its_stages():
    block = ODEBlock(spline_field(), solver="rk4", num_steps=10)
    assert block.times == pytest.approx([n / 20 for n in range(21)]) or sorted(block.times) == pytest.approx(
        [n / 20 for n in range(21)]
    )
    assert block.table.shape == (21, 6)


def gradients(block, x):
    x = x.clone().requires_grad_()
    block.zero_grad()
    block(x).square().sum().backward()
    return [x.grad, *(p.grad.clone() for p in block.parameters())]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_checkpoint_gradients_equal_autograd(name, solver):
    arguments = {"solver": solver, "num_steps": 11}
    plain = ODEBlock(copy.deepcopy(FIELDS[name]), **arguments).double()
    saving = ODEBlock(copy.deepcopy(FIELDS[name]), **arguments, sensitivity="checkpoint").double()
    for ours, theirs in zip(gradients(saving, STATE.double()), gradients(plain, STATE.double()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("name", [*FIELDS, "called"])
def test_reversible_gradients_equal_autograd(name):
    """Also of a shorter last step, and of a field that is not tabulated."""
    field = Field(5) if name == "called" else FIELDS[name]
    plain, saving = (
        ODEBlock(copy.deepcopy(field), solver="leapfrog", step_size=0.15, sensitivity=sensitivity).double()
        for sensitivity in ("autograd", "reversible")
    )
    x = STATE.double()
    torch.testing.assert_close(saving(x), plain(x), atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(gradients(saving, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-8)


def test_reversible_gradients_in_single_precision_over_many_steps():
    plain, saving = (
        ODEBlock(spline_field(), solver="leapfrog", num_steps=160, sensitivity=s) for s in ("autograd", "reversible")
    )
    for ours, theirs in zip(gradients(saving, STATE), gradients(plain, STATE), strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


def test_reversible_under_autocast_undoes_the_same_steps():
    """Backwards the slopes are those of bf16 too; in float32 the states would not be those of the forward pass."""
    plain, saving = (
        ODEBlock(spline_field(), solver="leapfrog", num_steps=10, sensitivity=s) for s in ("autograd", "reversible")
    )
    results = []
    for block in (plain, saving):
        x = STATE.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            end = block(x)
        end.square().sum().backward()
        results.append((end.detach(), x.grad))
    (end, grad), (other_end, other_grad) = results
    torch.testing.assert_close(other_end, end, atol=0, rtol=0)
    assert (grad - other_grad).norm() < 0.01 * grad.norm()


def test_reversible_with_frozen_parameters_and_without_gradients():
    block = ODEBlock(spline_field(degree=2), solver="leapfrog", num_steps=4, sensitivity="reversible")
    block.field.convs[0].coeffs.requires_grad_(False)
    block(STATE).sum().backward()
    assert block.field.convs[0].coeffs.grad is None and block.field.convs[1].coeffs.grad.abs().sum() > 0
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    assert not block(STATE).requires_grad


@pytest.mark.parametrize(("steps", "states"), [(1, 4), (5, 4), (20, 4), (160, 4), (7, 16)])
def test_segments_cover_the_steps_and_need_the_memory_that_is_least(steps, states):
    def peak(lengths):
        return max(i + states * length for i, length in enumerate(lengths, 1))

    lengths = _segments(steps, states)
    assert sum(lengths) == steps and min(lengths) >= 1
    uniform = [[n] * (steps // n) + [steps % n] * (steps % n > 0) for n in range(1, steps + 1)]
    assert peak(lengths) <= min(map(peak, uniform))


def kept_for_backward(block, x):
    """Bytes of the storages that autograd keeps, parameters aside."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in block.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        end = block(x)  # held, so that no address is used twice
    assert end.requires_grad
    return sum(kept.values())


def test_what_is_kept_does_not_grow_with_the_steps_of_a_reversible_solve():
    x = torch.randn(8, 8, 5, 5)
    kept = [
        kept_for_backward(ODEBlock(spline_field(), solver="leapfrog", num_steps=n, sensitivity="reversible"), x)
        for n in (5, 40)
    ]
    assert kept[0] == kept[1] <= 3 * x.nbytes
    plain = [kept_for_backward(ODEBlock(spline_field(), solver="leapfrog", num_steps=n), x) for n in (5, 40)]
    assert plain[1] > 6 * plain[0] > 6 * 5 * 3 * x.nbytes


SMOOTH = {"vector": Field(3), "lifted": FIELDS["lifted"]}


@pytest.mark.parametrize("solver", ["dopri5", "tsit5"])
@pytest.mark.parametrize("name", [*SMOOTH, "one conv", "concat"])
def test_adjoint_gradients_equal_autograd(name, solver):
    """The adjoint's gradients are those of the exact solution, so the oracle is autograd through a fine solve.

    ReLU fields have kinks, at which every solver's order ends; a gradient of nothing but rounding (of a bias before a
    norm) is judged by the size of all of them.
    """
    smooth = name in SMOOTH
    field, tolerance = (SMOOTH[name], 1e-9) if smooth else (FIELDS[name], 1e-5)
    x = torch.randn(2, 3).double() if name == "vector" else STATE[:1, :, :3, :3].double()
    exact = ODEBlock(copy.deepcopy(field), solver="rk4", num_steps=200).double()
    adjoint = ODEBlock(copy.deepcopy(field), solver=solver, rtol=tolerance, atol=tolerance, sensitivity="adjoint")
    theirs = torch.cat([g.flatten() for g in gradients(exact, x)])
    ours = torch.cat([g.flatten() for g in gradients(adjoint.double(), x)])
    assert (ours - theirs).norm() < (1e-6 if smooth else 1e-2) * theirs.norm()


def test_adjoint_with_frozen_parameters():
    field = spline_field(degree=2)
    block = ODEBlock(field, solver="dopri5", sensitivity="adjoint").double()
    field.convs[0].coeffs.requires_grad_(False)
    block(STATE[:1].double()).sum().backward()
    assert field.convs[0].coeffs.grad is None
    assert field.convs[1].coeffs.grad.abs().sum() > 0
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    assert not block(STATE[:1].double()).requires_grad


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_gradients_against_finite_differences(solver):
    block = ODEBlock(spline_field(channels=2), solver=solver, num_steps=3).double()
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    coeffs = block.field.convs[0].coeffs

    def solve(x, values):
        return torch.func.functional_call(block, {"field.convs.0.coeffs": values}, (x,))

    assert gradcheck(solve, (x, coeffs), eps=1e-6, atol=1e-6, fast_mode=True)


def test_euler_with_adjoint_warns_and_its_gradients_are_off():
    with pytest.warns(UserWarning, match='"checkpoint"'):
        block = ODEBlock(spline_field(), step_size=0.05, sensitivity="adjoint").double()
    exact = ODEBlock(spline_field(), step_size=0.05).double()
    ours, theirs = gradients(block, STATE.double()), gradients(exact, STATE.double())
    error = (ours[0] - theirs[0]).norm() / theirs[0].norm()
    assert 1e-4 < error < 1


def test_constant_weights_are_the_special_case_k0_m1():
    """k = 0, m = 1: the field does not depend on time, and equals the same layers with constant weights."""
    torch.manual_seed(0)
    field = SplineConvField(8, BSplineBasis(1, 0))
    block = ODEBlock(field, step_size=0.05)
    x = STATE
    for _ in range(20):
        y = x
        for norm, conv in zip(field.norms, field.convs, strict=True):
            y = torch.nn.functional.conv2d(torch.relu(norm(y)), conv.coeffs[..., 0], padding=1)
        x = x + 0.05 * y
    torch.testing.assert_close(block(STATE), x, atol=1e-5, rtol=1e-5)


def test_casts_and_empty_keep_the_table():
    block = ODEBlock(spline_field(), step_size=0.05)
    table = block.table.clone()
    assert block.half().table.dtype == torch.float32
    assert torch.equal(block.table, table)
    assert block.double().table.dtype == torch.float64
    with torch.device("meta"):
        block = ODEBlock(SplineConvField(8, BSplineBasis(6, 1)), step_size=0.05)
    torch.testing.assert_close(block.to_empty(device="cpu").table, table)
    assert "table" not in block.state_dict()


def test_autocast_makes_weights_in_full_precision():
    field = spline_field()
    table = ODEBlock(field, step_size=0.05).table
    plain = field.stage_weights(table)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = field.stage_weights(table)
    assert all(torch.equal(torch.stack(a), torch.stack(b)) for a, b in zip(plain, mixed, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"step_size": 0.1, "rtol": 1e-3}, "rtol=0.001.*fixed grid"),
        ({"solver": "dopri5", "num_steps": 3}, "num_steps=3.*chooses its own"),
        ({"solver": "dopri5", "sensitivity": "checkpoint"}, 'checkpoint.*dopri5.*"adjoint"'),
        ({"solver": "leapfrog", "num_steps": 3, "sensitivity": "checkpoint"}, 'leapfrog.*"reversible" or "autograd"'),
        ({"num_steps": 3, "sensitivity": "reversible"}, 'reversible.*euler.*needs solver="leapfrog"'),
        ({"solver": "dopri5", "rtol": 0.0}, "rtol=0.0.*positive"),
        ({"solver": "dopri5", "atol": -1.0}, "atol=-1.0.*positive"),
        ({"solver": "rk5", "num_steps": 2}, "solver='rk5'.*euler"),
        ({"num_steps": 2, "sensitivity": "adjiont"}, "adjiont.*autograd, checkpoint, reversible, adjoint"),
        ({"num_steps": 2, "t_span": (0.0, 2.0)}, r"t_span=\(0.0, 2.0\) leaves the span \(0.0, 1.0\)"),
        ({"num_steps": 2, "t_span": (1.0, 0.0)}, "t0 < t1"),
    ],
)
def test_pairs_that_cannot_be_right_are_refused(arguments, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=message):
            ODEBlock(spline_field(), **arguments)


def test_solution_reports_its_cost():
    assert ODEBlock(spline_field(), step_size=0.05).solve(STATE).nfe == 20
    adaptive = ODEBlock(spline_field(), solver="dopri5").solve(STATE)
    assert adaptive.nfe == 2 + 6 * (adaptive.num_accepted + adaptive.num_rejected)
