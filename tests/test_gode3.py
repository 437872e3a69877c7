"""The multi-stage GODE against its equations written out, its special cases, and what it refuses."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from filled_models import create, image
from scipy.interpolate import BSpline
from torch.nn import functional as F

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo.models.gode3 import Transition
from gode_zoo.surgery import compress, refine

SIZES = {
    "gode3_mnist_xs": 100_000,
    "gode3_cifar10_xs": 275_000,
    "gode3_cifar10_s": 860_000,
    "gode3_cifar10_b": 1_630_000,
}


@pytest.mark.parametrize("name", SIZES)
def test_it_is_as_small_as_its_size_says(name):
    model = timm.create_model(name, device="meta")
    count = sum(p.numel() for p in model.parameters())
    assert 0.85 * SIZES[name] < count <= SIZES[name]
    assert f"{count:,} parameters" in timm.model_entrypoint(name).__doc__


def test_it_is_its_equations_with_weights_by_scipy():
    model = create("gode3_cifar10_xs", degree=2, num_basis=4, t_span=(0.0, 2.0), num_steps=(2, 3, 5))
    knots = [0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0]

    def at(coeffs, t):
        value = BSpline(knots, coeffs.detach().double().movedim(-1, 0).numpy(), 2)(t)
        return torch.tensor(value, dtype=torch.float32)

    def line(coeffs, t):  # six linear B-splines: straight lines between equally spaced coefficients
        rows = [np.interp(t, np.linspace(0.0, 2.0, 6), row) for row in coeffs.numpy()]
        return torch.tensor(rows, dtype=torch.float32)

    def stage(x, field, steps):
        for i in range(steps):
            y, t = x, 2.0 * i / steps
            for norm, conv in zip(field.norms, field.convs, strict=True):
                running = (line(norm.mean_coeffs, t), line(norm.var_coeffs, t))
                y = F.relu(F.batch_norm(y, *running, at(norm.coeffs, t), at(norm.bias_coeffs, t)))
                y = F.conv2d(y, at(conv.coeffs, t), padding=1)
            x = x + 2.0 / steps * y
        return x

    def transition(x, layer):
        norm = layer.norm
        y = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        y = F.conv2d(y, layer.conv.weight, padding=1, stride=2)
        short = torch.zeros_like(y)
        short[:, : x.shape[1]] = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        return short + y

    with torch.no_grad():
        x, stem = image(model), model.stem
        y = stage(F.conv2d(x, stem.conv1.weight, padding=1), stem.stage1.field, 2)
        y = stage(transition(y, stem.transition1), stem.stage2.field, 3)
        y = stage(transition(y, stem.transition2), model.block.field, 5)
        norm = model.norm
        y = F.relu(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)).mean((2, 3))
        expected = F.linear(y, model.head.fc.weight, model.head.fc.bias)
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


def test_a_transition_of_odd_images_averages_what_is_there():
    layer = Transition(2, 3).eval()
    torch.nn.init.zeros_(layer.conv.weight)
    x = torch.arange(18.0).reshape(1, 2, 3, 3)
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y[0, 0], torch.tensor([[2.0, 3.5], [6.5, 8.0]])) and not y[0, 2].any()


@pytest.mark.parametrize("norm", ["spline_batch", "spline_group", "group"])
def test_more_steps_are_closer_to_the_solution(norm):
    """The same weights on finer grids: Euler's error halves when its steps double."""
    model = create("gode3_mnist_xs", norm=norm)
    outputs = {}
    for steps in (6, 64, 128, 512):
        finer = timm.create_model("gode3_mnist_xs", norm=norm, num_steps=steps).eval()
        finer.load_state_dict(model.state_dict())
        with torch.no_grad():
            outputs[steps] = finer(image(model))
    error = {steps: (outputs[steps] - outputs[512]).norm().item() for steps in (6, 64, 128)}
    assert error[6] > error[64] > 0
    assert 1.7 < error[64] / error[128] < 3.0  # 2 by the order, 7/3 since 512 steps have an error too


def test_finer_knots_leave_the_output_and_fewer_functions_come_back_exactly():
    model = create("gode3_mnist_xs")
    finer = refine(model, 5)
    x = image(model)
    with torch.no_grad():
        torch.testing.assert_close(finer(x), model(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(compress(finer, 3, knots="clamped")(x), model(x), atol=1e-4, rtol=1e-4)
    again = timm.create_model("gode3_mnist_xs", **finer._model_args).eval()
    again.load_state_dict(finer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(x), finer(x))


def test_it_learns_and_its_statistics_are_those_of_evaluation():
    torch.manual_seed(0)
    model = timm.create_model("gode3_mnist_xs")
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    x += y.reshape(-1, 1, 1, 1) / 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        for _ in range(40):
            model(x)
        trained = F.cross_entropy(model(x), y)
        evaluated = F.cross_entropy(model.eval()(x), y)
    assert losses[-1] < 0.5 * losses[0]
    torch.testing.assert_close(evaluated, trained, atol=0.02, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (16, 32)}, r"channels=\(16, 32\): must be three"),
        ({"channels": (32, 16, 64)}, "none is below the one before"),
        ({"num_steps": (2, 2)}, r"num_steps=\(2, 2\): must be one number, or three"),
        ({"solver": "dopri5", "sensitivity": "adjoint"}, "would normalise by other states"),
        ({"solver": "leapfrog", "sensitivity": "reversible"}, 'use "autograd"'),
        ({"norm": "group", "num_statistics": 4}, "keeps none: take it out"),
        ({"knots": "uniform"}, "do not sum to one"),
        ({"num_steps": 3, "step_size": 0.1}, "num_steps=3"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("gode3_cifar10_xs", **options)


def test_the_ablation_compares_models_of_one_size():
    spec = importlib.util.spec_from_file_location("ablation", Path(__file__).parents[1] / "results" / "ablation.py")
    ablation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablation)
    counts = {}
    for name in ablation.VARIANTS:
        recipe = ablation.recipe_of(name, 3)
        model = timm.create_model(recipe.model, device="meta", **recipe.model_args)
        counts[name] = sum(p.numel() for p in model.parameters())
    assert all(0.9 * counts["base"] < count <= 1.02 * counts["base"] for count in counts.values())
