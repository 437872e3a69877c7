"""torchdyn: our fields in its NeuralODE as it is, our NeuralODE's mends and refusals, and each fault pinned upstream.

A contract test that fails says that torchdyn changed: look at its release notes and drop the mend.
"""

import copy
import math
import warnings

import pytest
import torch
import torchdyn.core
from timm.utils import ModelEmaV3
from torch import nn
from torchdyn.nn import DepthCat, GalLinear

from gode_zoo import BSplineBasis, ConcatConvField, ODEBlock, SplineConvField, lift
from gode_zoo.torchdyn import BSplineExpansion, NeuralODE

TIMES = torch.linspace(0, 1, 21)


def smooth_field():
    torch.manual_seed(0)
    field = lift(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), BSplineBasis(4, 3, knots="clamped"))
    for p in field.parameters():
        nn.init.normal_(p, std=0.5)
    return field


def fields():
    torch.manual_seed(1)
    convolution = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh())
    return {
        "spline": SplineConvField(8, BSplineBasis(4, 1)),
        "concat": ConcatConvField(8),
        "lifted": lift(convolution, BSplineBasis(4, 2, knots="clamped")),
    }


FIELDS = fields()
IMAGES = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(2))
VECTORS = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def gradient(field, solution):
    return torch.cat([g.flatten() for g in torch.autograd.grad(solution.square().sum(), list(field.parameters()))])


def reference(x=VECTORS):
    """Solution and gradient by autograd through a fine solve in float64."""
    field = smooth_field().double()
    block = ODEBlock(field, solver="rk4", num_steps=200).double()
    end = block(x)
    return end.detach(), gradient(field, end)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("solver", ["euler", "midpoint"])
@pytest.mark.parametrize("cls", [torchdyn.core.NeuralODE, NeuralODE])
def test_fixed_grids_equal_our_block(name, solver, cls):
    field = copy.deepcopy(FIELDS[name])
    _, solution = cls(field, solver=solver)(IMAGES, TIMES)
    block = ODEBlock(copy.deepcopy(field), solver=solver, step_size=0.05)
    ours = block(IMAGES)
    torch.testing.assert_close(solution[-1], ours, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient(field, solution[-1]), gradient(block.field, ours), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("solver", ["dopri5", "tsit5"])
@pytest.mark.parametrize("sensitivity", ["autograd", "adjoint"])
def test_adaptive_solvers_upstream_and_ours(solver, sensitivity):
    end, exact = reference()
    for cls in (torchdyn.core.NeuralODE, NeuralODE):
        field = smooth_field().double()
        adjoint = {} if sensitivity == "autograd" else {"atol_adjoint": 1e-7, "rtol_adjoint": 1e-7}
        model = cls(field, solver=solver, sensitivity=sensitivity, atol=1e-7, rtol=1e-7, **adjoint)
        _, solution = model(VECTORS.clone(), TIMES.double())
        torch.testing.assert_close(solution[-1], end, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient(field, solution[-1]), exact, atol=1e-4, rtol=1e-3)


class Growing(nn.Module):
    """x' = 2 t x, so x(1) = e · x(0)."""

    def forward(self, t, x, args=None):
        return 2 * t * x


def observed_order(cls):
    errors = []
    for steps in (8, 16):
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        end = cls(Growing(), solver="rk4")(torch.ones(1, 1, dtype=torch.float64), times)[1][-1]
        errors.append(abs(end.item() - math.e))
    return math.log2(errors[0] / errors[1])


def test_rk4_has_order_4_here_and_order_1_upstream():
    assert observed_order(NeuralODE) == pytest.approx(4, abs=0.3)
    assert observed_order(torchdyn.core.NeuralODE) == pytest.approx(1, abs=0.3), "torchdyn's rk4 was mended"


def test_copies_and_moving_averages_here_and_their_failure_upstream():
    model = NeuralODE(smooth_field(), solver="euler", num_steps=5)
    x = torch.randn(2, 3)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x)[1], model(x)[1])
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    average.update(model, step=1)
    assert not torch.equal(average.module(x)[1], copied(x)[1])
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(torchdyn.core.NeuralODE(smooth_field(), solver="euler"))
        pytest.fail("torchdyn's NeuralODE can be copied now")


def test_frozen_parameters_under_the_adjoint_here_and_their_failure_upstream():
    for cls, works in ((NeuralODE, True), (torchdyn.core.NeuralODE, False)):
        field = smooth_field()
        frozen, *free = list(field.parameters())
        frozen.requires_grad_(False)
        model = cls(field, solver="dopri5", sensitivity="adjoint")
        solution = model(VECTORS.float().requires_grad_(), TIMES[[0, -1]])[1]
        if works:
            solution.sum().backward()
            assert frozen.grad is None and all(p.grad.abs().sum() > 0 for p in free)
        else:
            with pytest.raises(RuntimeError):
                solution.sum().backward()
                pytest.fail("torchdyn's adjoint takes frozen parameters now")


def test_interpolated_adjoint_on_images_here_and_its_failure_upstream():
    field = copy.deepcopy(FIELDS["lifted"]).double()
    block = ODEBlock(copy.deepcopy(field), solver="rk4", num_steps=100).double()
    exact = gradient(block.field, block(IMAGES.double()))
    tolerances = dict.fromkeys(("atol", "rtol", "atol_adjoint", "rtol_adjoint"), 1e-7)
    model = NeuralODE(field, solver="dopri5", sensitivity="interpolated_adjoint", **tolerances)
    solution = model(IMAGES.double(), TIMES.double())[1]
    torch.testing.assert_close(gradient(field, solution[-1]), exact, atol=1e-4, rtol=1e-3)
    theirs = torchdyn.core.NeuralODE(
        copy.deepcopy(FIELDS["lifted"]), solver="dopri5", sensitivity="interpolated_adjoint"
    )
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        theirs(IMAGES.clone().requires_grad_(), TIMES)[1].sum().backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "ieuler"}, "solver='ieuler'.*implicit Euler.*one of euler"),
        ({"solver": "mszero"}, "multiple shooting.*one of euler"),
        ({"solver": "rk5"}, "solver='rk5'.*euler, midpoint"),
        ({"solver": "euler", "rtol": 1e-3}, "rtol=0.001.*fixed grid"),
        ({"solver": "dopri5", "num_steps": 3}, "num_steps=3.*chooses its own"),
        ({"sensitivity": "adjiont"}, "adjiont.*autograd, adjoint"),
    ],
)
def test_what_cannot_be_right_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeuralODE(smooth_field(), **arguments)


def test_a_fixed_grid_has_no_default_span_here_and_one_step_upstream():
    with pytest.raises(ValueError, match=r"t_span=None.*num_steps="):
        NeuralODE(smooth_field(), solver="euler")(torch.randn(2, 3))
    field, calls = Growing(), []
    field.register_forward_hook(lambda *_: calls.append(1))
    torchdyn.core.NeuralODE(field, solver="euler")(torch.ones(1, 1))
    assert len(calls) <= 2, "torchdyn's default span has more than one step now"
    model = NeuralODE(smooth_field(), solver="euler", num_steps=20)
    x = torch.randn(2, 3)
    assert torch.allclose(model(x, [0.0, 1.0])[1][-1], model(x)[1][-1])


def test_an_adjoint_on_a_fixed_grid_warns():
    with pytest.warns(UserWarning, match="discrete solve"):
        NeuralODE(smooth_field(), solver="euler", sensitivity="adjoint", num_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralODE(smooth_field(), solver="dopri5", sensitivity="adjoint")


def test_expansion_in_gal_linear_is_a_spline_linear():
    basis = BSplineBasis(6, 2, knots="clamped")
    layer = GalLinear(3, 2, expfunc=BSplineExpansion(basis), dilation=False, shift=False)
    nn.init.normal_(layer.coeffs)
    field = nn.Sequential(DepthCat(1), layer)
    x = torch.randn(4, 3)
    for t in (0.0, 0.3, 1.0):
        for module in field.modules():
            if hasattr(module, "t"):
                module.t = torch.tensor(t)
        weights = layer.coeffs[..., 0] @ basis(torch.tensor(t))
        expected = nn.functional.linear(x, weights[:6].view(2, 3), weights[6:])
        torch.testing.assert_close(field(x), expected, atol=1e-5, rtol=1e-5)
