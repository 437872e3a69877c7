"""Baking: the same outputs without a spline, and what cannot be baked is refused."""

import pytest
import timm
import torch

import gode_zoo  # noqa: F401
from gode_zoo import BSplineBasis, ODEBlock, SplineConvField
from gode_zoo.bake import BakedBlock, bake

SETTINGS = [
    {},
    {"solver": "rk4", "num_steps": 3},
    {"solver": "heun", "step_size": 0.3, "num_convs": 1},  # the last step is shorter
    {"solver": "leapfrog", "step_size": 0.3},
    {"solver": "midpoint", "num_steps": 2, "num_convs": 3, "degree": 3, "knots": "clamped"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_baked_model_gives_the_same_outputs(settings):
    torch.manual_seed(0)
    model = timm.create_model("gode_mnist_m4", **settings).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    baked = bake(model)
    x = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(baked(x), model(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.jit.script(baked)(x), model(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.fx.symbolic_trace(baked)(x), model(x), atol=1e-5, rtol=1e-5)
    assert not [name for name in baked.state_dict() if "coeffs" in name] and not baked.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    storages = {p.data_ptr() for p in model.parameters()}
    assert not [name for name, p in baked.named_parameters() if p.data_ptr() in storages]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gode3_mnist_xs", {}),
        ("gode3_mnist_xs", {"norm": "spline_group", "solver": "rk4", "num_steps": 2}),
        ("gode3_mnist_xs", {"norm": "spline_group", "solver": "leapfrog", "num_steps": 3}),
        ("statefulnet_mnist", {"num_steps": 6}),
    ],
)
def test_norms_that_vary_with_time_are_baked_too(name, settings):
    torch.manual_seed(0)
    model = timm.create_model(name, **settings)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key and key.endswith("coeffs"):
                value.uniform_(0.5, 1.5)
    baked, x = bake(model.eval()), torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(baked(x), model(x), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(torch.jit.script(baked)(x), model(x), atol=1e-4, rtol=1e-5)
    assert not [name for name in baked.state_dict() if "coeffs" in name] and not baked.training


def test_evaluations_at_the_same_time_share_a_kernel():
    block = ODEBlock(SplineConvField(8, BSplineBasis(4, 1)), solver="rk4", num_steps=3).double()
    baked = bake(block)
    assert isinstance(baked, BakedBlock) and len(baked.convs) == 12
    assert len({id(conv) for convs in baked.convs for conv in convs}) == 2 * 7
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(baked(x), block(x), atol=1e-12, rtol=1e-12)


def test_baked_network_can_be_trained():
    baked = bake(ODEBlock(SplineConvField(8, BSplineBasis(4, 1, knots="clamped")), num_steps=3))
    baked(torch.randn(2, 8, 5, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in baked.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet6_mnist", {}, "ResNet has no block of a SplineConvField.*no ODE block"),
        ("odenet_mnist", {}, "ConcatConvField.*give a gode"),
        ("gode_mnist_m4", {"solver": "dopri5"}, 'block has solver=.dopri5.*solver="rk4"'),
    ],
)
def test_what_cannot_be_baked_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        bake(timm.create_model(name, **arguments))
