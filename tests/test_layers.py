"""Spline layers equal the plain ones with weights combined by hand, with scipy's B-splines."""

import copy

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn
from torch.nn import functional as F

from gode_zoo import BSplineBasis, ODEBlock, SplineConv2d, SplineConvField, SplineGroupNorm, SplineLinear, lift
from gode_zoo.layers import SplineBatchNorm2d, combine, spline_coefficients

TIMES = [0.0, 0.13, 0.5, 0.99, 1.0]


def at(coeffs, basis, t):
    """Σ_i B_i(t) ξ_i by scipy."""
    m, k = basis.num_basis, basis.degree
    values = np.stack([BSpline(np.asarray(basis.knot_values), row, k)(t) for row in np.eye(m)])
    return torch.tensordot(coeffs.detach(), torch.from_numpy(np.nan_to_num(values)), dims=([-1], [0]))


def filled(layer):
    generator = torch.Generator().manual_seed(0)
    for p in layer.parameters():
        p.data.normal_(generator=generator)
    return layer.double()


def state(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def clamped(m=5, degree=2):
    return BSplineBasis(m, degree, knots="clamped")


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "padding": (0, 2)}, {"groups": 2}, {"bias": False}],
    ids=str,
)
def test_convolution(options, t):
    layer = filled(SplineConv2d(4, 6, (3, 2), clamped(), **options))
    x = state(2, 4, 7, 8)
    plain = {k: v for k, v in options.items() if k != "bias"}
    bias = None if layer.bias_coeffs is None else at(layer.bias_coeffs, layer.basis, t)
    expected = F.conv2d(x, at(layer.coeffs, layer.basis, t), bias, **plain)
    torch.testing.assert_close(layer(torch.tensor(t, dtype=torch.float64), x), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_linear_and_norm(t):
    time = torch.tensor([t], dtype=torch.float64)
    linear, norm = filled(SplineLinear(4, 3, clamped())), filled(SplineGroupNorm(2, 4, clamped()))
    x = state(5, 4)
    expected = F.linear(x, at(linear.coeffs, linear.basis, t), at(linear.bias_coeffs, linear.basis, t))
    torch.testing.assert_close(linear(time, x), expected, atol=1e-12, rtol=1e-12)
    x = state(2, 4, 3, 3)
    expected = F.group_norm(x, 2, at(norm.coeffs, norm.basis, t), at(norm.bias_coeffs, norm.basis, t), norm.eps)
    torch.testing.assert_close(norm(time, x), expected, atol=1e-12, rtol=1e-12)


def test_gradients_also_in_t():
    layer = filled(SplineConv2d(2, 2, 3, clamped(degree=3)))
    t = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (t, state(1, 2, 4, 4).requires_grad_()))
    coeffs = layer.coeffs.detach().clone().requires_grad_()

    def with_coeffs(values):
        return torch.func.functional_call(layer, {"coeffs": values}, (t.detach(), state(1, 2, 4, 4)))

    assert torch.autograd.gradcheck(with_coeffs, (coeffs,))


def test_one_constant_basis_function_is_the_plain_layer():
    torch.manual_seed(0)
    layer = SplineConv2d(3, 4, 3, BSplineBasis(1, 0), padding=1)
    x = torch.randn(2, 3, 5, 5)
    for t in (0.0, 0.7):
        expected = F.conv2d(x, layer.coeffs[..., 0], layer.bias_coeffs[..., 0], padding=1)
        torch.testing.assert_close(layer(torch.tensor(t), x), expected)


@pytest.mark.parametrize("m", [2, 8])
def test_initialisation_counts_m_in_the_fan_in(m):
    torch.manual_seed(0)
    coeffs = SplineConv2d(64, 64, 3, BSplineBasis(m, 1), bias=False).coeffs
    bound = (1.5 / (576 * m)) ** 0.5
    assert coeffs.abs().max() <= bound and coeffs.abs().max() > 0.999 * bound
    assert coeffs.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_a_norm_starts_as_a_plain_norm_where_the_basis_sums_to_one():
    norm, x = SplineGroupNorm(2, 4, clamped()), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(norm(torch.tensor(0.3), x), F.group_norm(x, 2))


def test_channels_last_kernels_come_out_of_the_product_as_they_are_used():
    """The layout is kept by casts and copies, undone by its opposite, and changes no value."""
    basis = BSplineBasis(4, 2, knots="clamped")
    conv = filled(SplineConv2d(6, 4, 3, basis, padding=1))
    x, t = state(2, 6, 5, 5), torch.tensor(0.3, dtype=torch.float64)
    expected, coeffs = conv(t, x).detach(), conv.coeffs.detach().clone()
    table = basis(torch.tensor(TIMES))

    def last(layer):
        return layer.weights_at(table.to(layer.coeffs.dtype))[1].is_contiguous(memory_format=torch.channels_last)

    assert not last(conv)
    conv.to(memory_format=torch.channels_last)
    assert last(conv) and last(copy.deepcopy(conv)) and last(conv.float()) and last(conv.double())
    assert torch.equal(conv.coeffs, coeffs.float())
    conv.load_state_dict({"coeffs": coeffs, "bias_coeffs": conv.bias_coeffs.detach().clone()})
    torch.testing.assert_close(conv(t, x), expected)
    conv.to(memory_format=torch.contiguous_format)
    assert not last(conv) and conv.coeffs.is_contiguous() and torch.equal(conv.coeffs, coeffs)


def test_weights_are_combined_in_full_precision_under_autocast():
    layer = SplineLinear(64, 64, clamped())
    row = layer.basis(torch.tensor([0.37]))
    exact = torch.tensordot(row, layer.coeffs, dims=([1], [-1]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(combine(row, layer.coeffs), exact)
        assert layer(torch.tensor(0.37), torch.randn(2, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: SplineConv2d(4, 6, 3, b, groups=4), "groups=4"),
        (lambda b: SplineConv2d(0, 6, 3, b), "in_channels=0"),
        (lambda b: SplineConv2d(4, 6, 0, b), "kernel_size=0.*at least 1"),
        (lambda b: SplineConv2d(4, 6, (3, 3, 3), b), "one integer or two"),
        (lambda b: SplineConv2d(4, 6, 3, b, stride=0), "stride=0"),
        (lambda b: SplineConv2d(4, 6, 3, b, padding=-1), "padding=-1"),
        (lambda b: SplineLinear(0, 3, b), "in_features=0"),
        (lambda b: SplineGroupNorm(3, 4, b), "num_groups=3"),
        (lambda b: SplineLinear(2, 3, b)(torch.zeros(2), torch.zeros(1, 2)), r"shape \(2,\).*one time"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(clamped())


def test_batch_norm_of_piecewise_constants_is_one_batch_norm_a_piece():
    """Scale, shift and running statistics of each piece are those of torch's BatchNorm2d."""
    basis = BSplineBasis(3, 0, knots="clamped")
    norm = SplineBatchNorm2d(4, basis)
    theirs = [nn.BatchNorm2d(4) for _ in range(3)]
    torch.manual_seed(0)
    nn.init.normal_(norm.coeffs), nn.init.normal_(norm.bias_coeffs)
    for i, bn in enumerate(theirs):
        bn.load_state_dict({**bn.state_dict(), "weight": norm.coeffs[:, i], "bias": norm.bias_coeffs[:, i]})
    for _ in range(3):
        for i, bn in enumerate(theirs):
            x = torch.randn(6, 4, 5, 5) * (i + 1) + i
            torch.testing.assert_close(norm(torch.tensor((i + 0.5) / 3), x), bn(x))
    norm.eval()
    for i, bn in enumerate(theirs):
        torch.testing.assert_close(norm.mean_coeffs[:, i], bn.running_mean)
        torch.testing.assert_close(norm.var_coeffs[:, i], bn.running_var)
        x = torch.randn(2, 4, 5, 5)
        torch.testing.assert_close(norm(torch.tensor((i + 0.5) / 3), x), bn.eval()(x))


@pytest.mark.parametrize("num_steps", [2, 3, 8])
@pytest.mark.parametrize("own", [False, True], ids=["one basis", "a basis of their own"])
def test_running_statistics_of_a_spline_fit_those_of_all_times_of_a_solve(num_steps, own):
    """Fewer times than coefficients, as many, and more: numpy's least squares (the smallest, where there is a choice)."""
    basis = BSplineBasis(3, 1, knots="clamped")
    scales = BSplineBasis(2, 0, knots="clamped") if own else basis
    field = SplineConvField(4, scales, num_convs=1, norm="spline_batch", statistics_basis=basis if own else None)
    norm, seen = field.norms[0], []
    nn.init.normal_(norm.mean_coeffs), nn.init.uniform_(norm.var_coeffs, 0.5, 2.0)
    old = norm.mean_coeffs.clone(), norm.var_coeffs.clone()
    apply = norm.apply_weights
    norm.apply_weights = lambda x, *rest: seen.append(x) or apply(x, *rest)
    block = ODEBlock(field, num_steps=num_steps)
    block(torch.randn(6, 4, 5, 5))
    matrix = basis(torch.tensor(block.times)).numpy()
    keep = np.eye(3) - np.linalg.pinv(matrix) @ matrix  # what these times do not see stays as it is
    for before, after, observed in (
        (old[0], norm.mean_coeffs, torch.stack([x.mean((0, 2, 3)) for x in seen])),
        (old[1], norm.var_coeffs, torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen])),
    ):
        fit = np.linalg.lstsq(matrix, observed.detach().numpy(), rcond=None)[0].T + before.numpy() @ keep
        np.testing.assert_allclose(after.numpy(), 0.9 * before.numpy() + 0.1 * fit, atol=1e-5)


def test_as_many_statistics_as_steps_make_evaluation_what_training_was():
    """On the very batch that training saw, when the running statistics have converged."""
    torch.manual_seed(0)
    basis = BSplineBasis(2, 1, knots="clamped")
    kept = {}
    for num_statistics in (2, 8):
        statistics = BSplineBasis(num_statistics, 1, knots="clamped")
        field = SplineConvField(4, basis, norm="spline_batch", statistics_basis=statistics)
        nn.init.normal_(field.convs[1].coeffs)
        block, x = ODEBlock(field, num_steps=8), torch.randn(6, 4, 5, 5)
        for _ in range(150):
            trained = block(x)
        size = x.numel() / x.shape[1]  # running variances are unbiased, those of a batch are not
        with torch.no_grad():
            for norm in field.norms:
                norm.var_coeffs.mul_((size - 1) / size)
        kept[num_statistics] = (block.eval()(x) - trained).norm() / trained.norm()
    assert kept[8] < 1e-4 < 1e-2 < kept[2]


def test_batch_norm_refuses_a_basis_that_vanishes_at_the_ends():
    with pytest.raises(ValueError, match=r'do not sum to one.*knots="clamped"'):
        SplineBatchNorm2d(4, BSplineBasis(3, 1))
    with pytest.raises(ValueError, match="num_channels=0"):
        SplineBatchNorm2d(0, BSplineBasis(3, 1, knots="clamped"))


def test_spline_coefficients_are_found_with_their_names():
    basis = BSplineBasis(3, 0, knots="clamped")
    model = nn.ModuleDict(
        {
            "norm": SplineBatchNorm2d(4, basis),
            "apart": SplineBatchNorm2d(4, basis, statistics_basis=BSplineBasis(5, 1, knots="clamped")),
            "lifted": lift(nn.Linear(2, 2), basis),
            "plain": nn.Linear(2, 2),
        }
    )
    names = [f"norm.{kind}coeffs" for kind in ("", "bias_", "mean_", "var_")]
    names += ["apart.coeffs", "apart.bias_coeffs", "lifted.coeffs.0", "lifted.coeffs.1"]
    found = {name: value for name, value, _ in spline_coefficients(model)}
    assert list(found) == names and all(
        found[name] is value for name, value in model.state_dict(keep_vars=True).items() if name in found
    )
