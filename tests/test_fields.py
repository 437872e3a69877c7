"""Vector fields equal the formulas of the paper written out, and their tabulated path equals calling them."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from gode_zoo import BSplineBasis, ConcatConvField, SplineConvField, lift

X = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))


def randomise(field):
    torch.manual_seed(1)
    for p in field.parameters():
        nn.init.normal_(p, std=0.3)
    return field


def norm(x, layer):
    return F.relu(F.group_norm(x, min(32, x.shape[1]), layer.weight, layer.bias))


@pytest.mark.parametrize("num_convs", [1, 2, 3, 4])
@pytest.mark.parametrize("t", [0.0, 0.35, 1.0])
def test_spline_conv_field(num_convs, t):
    field = randomise(SplineConvField(8, BSplineBasis(5, 1), num_convs))
    row = field.basis(torch.tensor(t))
    x = X
    for i in range(num_convs):
        x = norm(x, field.norms[i]) if num_convs > 1 else F.relu(x)  # with one convolution there is no norm
        x = F.conv2d(x, field.convs[i].coeffs @ row, padding=1)
    torch.testing.assert_close(field(torch.tensor(t), X), x, atol=1e-5, rtol=1e-5)
    assert (t == 0.35) == bool(x.abs().max() > 0)  # uniform linear splines vanish at both ends


def test_concat_conv_field():
    field = randomise(ConcatConvField(8))
    x, t = X, torch.tensor(0.35)
    for layer_norm, layer in ((field.norm1, field.conv1), (field.norm2, field.conv2)):
        x = norm(x, layer_norm)
        x = F.conv2d(torch.cat([torch.full_like(x[:, :1], 0.35), x], 1), layer.conv.weight, layer.conv.bias, padding=1)
    expected = F.group_norm(x, 8, field.norm3.weight, field.norm3.bias)
    torch.testing.assert_close(field(t, X), expected, atol=1e-5, rtol=1e-5)


def modules():
    torch.manual_seed(2)
    return {
        "conv": nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Tanh()),
        "norms": nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)).eval(),
    }


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_lift(name):
    module, basis = MODULES[name], BSplineBasis(4, 2, knots="clamped")
    field = lift(module, basis).eval()
    for t in (0.0, 0.4, 1.0):  # the coefficients start equal, and the basis sums to one
        torch.testing.assert_close(field(torch.tensor(t), X), module(X), atol=1e-5, rtol=1e-5)
    field.to(memory_format=torch.channels_last)
    randomise(field)
    row = basis(torch.tensor(0.4))
    values = {n: c @ row for (n, _), c in zip(module.named_parameters(), field.coeffs, strict=True)}
    torch.testing.assert_close(field(torch.tensor(0.4), X), functional_call(module, values, (X,)), atol=1e-5, rtol=1e-5)
    field(torch.tensor(0.4), X).sum().backward()
    assert all(c.grad is not None for c in field.coeffs)
    assert all(p.grad is None for p in module.parameters())


def test_lift_refuses_what_has_no_parameters_and_keeps_frozen_ones():
    with pytest.raises(ValueError, match="Tanh has no parameters"):
        lift(nn.Tanh(), BSplineBasis(4, 2))
    module = nn.Linear(3, 3)
    module.bias.requires_grad_(False)
    assert [c.requires_grad for c in lift(module, BSplineBasis(4, 2)).coeffs] == [True, False]


@pytest.mark.parametrize(
    "field",
    [SplineConvField(8, BSplineBasis(5, 1)), ConcatConvField(8), lift(MODULES["conv"], BSplineBasis(4, 2))],
    ids=["spline", "concat", "lifted"],
)
def test_tabulated_weights_give_what_calling_gives(field):
    randomise(field)
    times = torch.tensor([0.0, 0.3, 0.9])
    weights = field.stage_weights(field.tabulate(times))
    for stage, t in enumerate(times):
        torch.testing.assert_close(field.forward_stage(X, weights, stage), field(t, X), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_convs", [0, -1, 1.5, True])
def test_number_of_convolutions_is_checked(num_convs):
    with pytest.raises(ValueError, match=f"num_convs={num_convs}"):
        SplineConvField(8, BSplineBasis(5, 1), num_convs)


@pytest.mark.parametrize("kind", ["spline_group", "spline_batch"])
@pytest.mark.parametrize("t", [0.0, 0.35, 1.0])
def test_norms_that_vary_with_time(kind, t):
    field = randomise(SplineConvField(8, BSplineBasis(5, 1, knots="clamped"), norm=kind)).eval()
    row = field.basis(torch.tensor(t))
    x = X
    for layer, conv in zip(field.norms, field.convs, strict=True):
        scale, shift = layer.coeffs @ row, layer.bias_coeffs @ row
        if kind == "spline_group":
            x = F.group_norm(x, 8, scale, shift)
        else:
            x = x / (1 + 1e-5) ** 0.5 * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
        x = F.conv2d(F.relu(x), conv.coeffs @ row, padding=1)
    torch.testing.assert_close(field(torch.tensor(t), X), x, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"norm='layer'.*group, spline_group, spline_batch"):
        SplineConvField(8, field.basis, norm="layer")
