"""Related systems against their own equations written out, their special cases, and what they refuse."""

import numpy as np
import pytest
import timm
import torch
from filled_models import create, image
from scipy.integrate import solve_ivp
from scipy.interpolate import BSpline
from timm.models import save_for_hf
from torch import nn
from torch.nn import functional as F

import gode_zoo
from gode_zoo.models import ANODEV2
from gode_zoo.models.anodev2 import EvolvingConv2d, EvolvingConvField
from gode_zoo.surgery import compress, refine


def batch_norm(x, layer):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)


@pytest.mark.parametrize("name", ["continuousnet_mnist", "continuousnet_cifar10"])
def test_continuousnet_is_a_residual_network_written_out(name):
    """With piecewise constants and as many Euler steps of size 1/m: block i of a stage has weights and batch norm i."""
    model = create(name)
    x = image(model)

    def stage(x, block):
        field = block.field
        pieces = field.basis.num_basis
        assert len(block.step_sizes) == pieces and field.basis.degree == 0
        for i in range(pieces):
            y = x
            for norm, conv in zip(field.norms, field.convs, strict=True):
                at = {key: getattr(norm, key)[:, i] for key in ("mean_coeffs", "var_coeffs", "coeffs", "bias_coeffs")}
                y = F.conv2d(F.relu(F.batch_norm(y, *at.values())), conv.coeffs[..., i], padding=1)
            x = x + y / pieces
        return x

    def stitch(x, layer):
        y = F.conv2d(F.relu(batch_norm(x, layer.norm1)), layer.conv1.weight, padding=1)
        y = F.conv2d(F.relu(batch_norm(y, layer.norm2)), layer.conv2.weight, padding=1, stride=2)
        return F.conv2d(x, layer.shortcut.weight, stride=2) + y

    with torch.no_grad():
        stem = model.stem
        y = F.relu(batch_norm(F.conv2d(x, stem.conv1.weight, padding=1), stem.norm1))
        y = stitch(stage(y, stem.stage1), stem.stitch1)
        y = stitch(stage(y, stem.stage2), stem.stitch2)
        y = batch_norm(stage(y, model.block), model.norm).mean((2, 3))
        expected = F.linear(y, model.head.fc.weight, model.head.fc.bias)
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


def test_stateful_odenet_takes_weights_and_statistics_of_each_time():
    """One stage by Euler's method with everything interpolated linearly by numpy."""
    model = create("statefulnet_mnist", num_steps=6)
    block, field = model.block, model.block.field
    x = torch.randn(2, 64, 5, 5)

    def at(coeffs, t):  # linear clamped B-splines: linear interpolation between equally spaced coefficients
        flat = coeffs.detach().numpy().reshape(-1, 4)
        values = [np.interp(t, np.linspace(0, 1, 4), row) for row in flat]
        return torch.tensor(np.array(values), dtype=torch.float32).reshape(coeffs.shape[:-1])

    y = x
    for n in range(6):
        slope = y
        for norm, conv in zip(field.norms, field.convs, strict=True):
            each = (at(c, n / 6) for c in (norm.mean_coeffs, norm.var_coeffs, norm.coeffs, norm.bias_coeffs))
            slope = F.conv2d(F.relu(F.batch_norm(slope, *each)), at(conv.coeffs, n / 6), padding=1)
        y = y + slope / 6
    with torch.no_grad():
        torch.testing.assert_close(block(x), y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["continuousnet_mnist", "statefulnet_mnist"])
def test_refinement_and_projection_of_all_three_stages(name, tmp_path):
    model = create(name)
    x = image(model)
    with torch.no_grad():
        finer = refine(model, 8)
        torch.testing.assert_close(finer(x), model(x), atol=1e-5, rtol=1e-5)
        smaller = compress(finer, 4, knots="clamped")  # the finer space holds the coarse one
        torch.testing.assert_close(smaller(x), model(x), atol=1e-4, rtol=1e-4)
        save_for_hf(finer, tmp_path, safe_serialization=True)
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), finer(x))


def test_running_statistics_are_learned_in_training_and_used_in_evaluation():
    model = timm.create_model("statefulnet_mnist", num_classes=2)
    before = model.block.field.norms[0].mean_coeffs.clone()
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 0.5
    x = torch.rand(8, 1, 28, 28)
    for _ in range(25):
        expected = model(x)
    assert not torch.equal(before, model.block.field.norms[0].mean_coeffs)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, atol=0.02, rtol=0.02)
        model(x + 1)
    moved = model.block.field.norms[0].mean_coeffs.clone()
    assert torch.equal(moved, model.block.field.norms[0].mean_coeffs)


def test_splinet_by_scipy():
    """dx/dt = tanh(W(t) x + b(t)) with scipy's B-splines, by scipy's solver; and the model's own Euler steps."""
    model = create("splinet_mnist", num_basis=6, degree=3, width=5, step_size=0.05)
    linear, basis = model.block.field.linear, model.block.field.basis
    nn.init.normal_(linear.coeffs), nn.init.normal_(linear.bias_coeffs)
    knots = np.asarray(basis.knot_values)
    weight = BSpline(knots, np.moveaxis(linear.coeffs.detach().double().numpy(), -1, 0), 3)
    bias = BSpline(knots, linear.bias_coeffs.detach().double().numpy().T, 3)
    x = image(model)
    with torch.no_grad():
        opening = torch.tanh(F.linear(x.flatten(1), model.stem.conv1.weight.flatten(1), model.stem.conv1.bias))
        euler = opening.double().numpy()
        for n in range(20):
            euler = euler + 0.05 * np.tanh(euler @ weight(n / 20).T + bias(n / 20))
        logits = F.linear(torch.from_numpy(euler).float(), model.head.fc.weight, model.head.fc.bias)
        torch.testing.assert_close(model(x), logits, atol=1e-5, rtol=1e-4)

        def slope(t, y):
            return np.tanh(weight(t) @ y + bias(t))

        exact = timm.create_model(
            "splinet_mnist", num_basis=6, degree=3, width=5, solver="dopri5", rtol=1e-6, atol=1e-7
        )
        exact.load_state_dict(model.state_dict())
        end = solve_ivp(slope, (0, 1), opening[0].double().numpy(), rtol=1e-9, atol=1e-10).y[:, -1]
        state = exact.eval().forward_features(x)
        np.testing.assert_allclose(state[0].flatten().numpy(), end, atol=1e-4)


@pytest.mark.parametrize("basis", ["fourier", "polynomial", "chebyshev", "rbf"])
def test_galerkin_kernels_are_the_sum_over_the_basis(basis):
    model = create("galerkin_mnist", basis=basis, num_basis=3, num_steps=2)
    s = np.array([0.0, 0.5])
    functions = {
        "fourier": [s**0, np.cos(np.pi * s), np.sin(np.pi * s)],
        "polynomial": [s**0, s, s**2],
        "chebyshev": [s**0, 2 * s - 1, 2 * (2 * s - 1) ** 2 - 1],
        "rbf": [np.exp(-(((s - c) / 0.5) ** 2)) for c in (0, 0.5, 1)],
    }[basis]
    table = torch.tensor(np.stack(functions, -1), dtype=torch.float32)
    block, field = model.block, model.block.field
    x = torch.randn(2, 64, 4, 4)
    y = x
    for n in range(2):
        slope = y
        for norm, conv in zip(field.norms, field.convs, strict=True):
            slope = F.conv2d(F.relu(F.group_norm(slope, 32, norm.weight, norm.bias)), conv.coeffs @ table[n], padding=1)
        y = y + slope / 2
    with torch.no_grad():
        torch.testing.assert_close(block(x), y, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"basis='bspline'.*fourier.*gode_\*"):
        timm.create_model("galerkin_mnist", basis="bspline")


def test_augmented_neural_ode_written_out():
    model = create("anode_mnist", num_steps=5)
    augment, ode = model.block
    x = torch.randn(2, 64, 4, 4)

    def conv(t, x, layer, padding):
        plane = torch.full((2, 1, 4, 4), t)
        return F.conv2d(torch.cat([plane, x], 1), layer.conv.weight, layer.conv.bias, padding=padding)

    y = torch.cat([x, torch.zeros(2, 32, 4, 4)], 1)
    for n in range(5):
        slope = F.relu(conv(n / 5, y, ode.field.conv1, 0))
        slope = F.relu(conv(n / 5, slope, ode.field.conv2, 1))
        y = y + conv(n / 5, slope, ode.field.conv3, 0) / 5
    with torch.no_grad():
        torch.testing.assert_close(model.block(x), y, atol=1e-5, rtol=1e-4)
    assert augment.num_channels == 32 and model.num_features == 96
    with pytest.raises(ValueError, match=r"augment=5.*multiple of 32"):
        timm.create_model("anode_mnist", augment=5)


def test_anodev2_is_the_coupled_system_by_scipy():
    """State and kernels as one ODE, the kernels' right-hand side with loops over the grid."""
    torch.manual_seed(0)
    field = EvolvingConvField(2, 0.0, 40).double()
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)

    def kernels_slope(w, rates):
        reaction, diffusion, down, right = rates
        result = np.zeros_like(w)
        for i in range(3):
            for j in range(3):
                here = w[..., i, j]
                up, low = w[..., max(i - 1, 0), j], w[..., min(i + 1, 2), j]
                west, east = w[..., i, max(j - 1, 0)], w[..., i, min(j + 1, 2)]
                spread = up + low + west + east - 4 * here
                flow = down * (low - up) / 2 + right * (east - west) / 2
                result[..., i, j] = np.tanh(diffusion * spread + flow + reaction * here)
        return result

    convs = [field.conv1, field.conv2]
    rates = [conv.rates.detach().numpy() for conv in convs]

    def slope(t, y):
        kernels = [y[18 + 36 * i : 54 + 36 * i].reshape(2, 2, 3, 3) for i in range(2)]
        state = torch.from_numpy(y[:18].reshape(1, 2, 3, 3))
        for norm, kernel in zip((field.norm1, field.norm2), kernels, strict=True):
            state = F.conv2d(
                F.relu(F.group_norm(state, 2, norm.weight, norm.bias)), torch.from_numpy(kernel), padding=1
            )
        parts = [state.detach().numpy().ravel()]
        return np.concatenate(parts + [kernels_slope(k, r).ravel() for k, r in zip(kernels, rates, strict=True)])

    start = np.concatenate([x.numpy().ravel(), *(conv.start.detach().numpy().ravel() for conv in convs)])
    end = solve_ivp(slope, (0, 1), start, rtol=1e-9, atol=1e-10).y[:, -1]
    block = gode_zoo.ODEBlock(field, solver="rk4", num_steps=40)
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy().ravel(), end[:18], atol=1e-4)
        times = torch.ones(1, 1, dtype=torch.float64)
        for i, conv in enumerate(convs):
            np.testing.assert_allclose(
                conv.kernels_at(times).numpy().ravel(), end[18 + 36 * i : 54 + 36 * i], atol=1e-6
            )


def test_anodev2_without_rates_has_constant_weights():
    """What the model starts as: a Neural-ODE. And pure diffusion keeps the sum of a kernel only to first order in tanh."""
    model = create("anodev2_mnist", num_steps=3)
    field = model.block.field
    kernels = field.conv1.kernels_at(torch.tensor([[0.0], [0.5], [1.0]]))
    torch.testing.assert_close(kernels, field.conv1.start.expand(3, -1, -1, -1, -1))
    conv = EvolvingConv2d(1, 0.0, 8).double()
    with torch.no_grad():
        conv.start.mul_(1e-4)  # where tanh is the identity: dW/dt = A W, solved by the matrix exponential
        conv.rates.copy_(torch.tensor([0.3, 0.2, -0.1, 0.4]))
        expected = conv.start.reshape(1, 9) @ torch.matrix_exp(0.7 * conv.evolution())
        got = conv.kernels_at(torch.full((1, 1), 0.7, dtype=torch.float64))
    torch.testing.assert_close(got.reshape(1, 9), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("continuousnet_mnist", {"sensitivity": "adjoint"}, 'sensitivity="adjoint" with batch norm'),
        ("statefulnet_mnist", {"knots": "uniform"}, "do not sum to one"),
        ("anodev2_mnist", {"weight_steps": 0}, "weight_steps=0"),
        ("splinet_mnist", {"num_basis": 2}, "num_basis=2 with degree=2"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **options)


def test_solvers_and_steps_can_be_swapped():
    assert len(timm.create_model("continuousnet_cifar10", step_size=0.5).block.step_sizes) == 2
    assert timm.create_model("continuousnet_cifar10", solver="dopri5").block.solver == "dopri5"
    assert len(timm.create_model("statefulnet_mnist").block.step_sizes) == 4
    assert isinstance(ANODEV2(solver="rk4", num_steps=2), nn.Module)
