"""Penalties against scipy's derivatives and quadrature; in training, and their effect on W(t)."""

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from scipy.integrate import quad
from scipy.interpolate import BSpline
from torch import nn

from gode_zoo import BSplineBasis, SplineConv2d, SplineLinear, lift
from gode_zoo.bases import FourierBasis
from gode_zoo.layers import SplineBatchNorm2d
from gode_zoo.penalties import SplinePenalty, difference_matrix, roughness_matrix
from gode_zoo.recipes import RecipeError, recipe_from_dict
from gode_zoo.train import train


@pytest.mark.parametrize(("degree", "order"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (5, 2)])
@pytest.mark.parametrize("kind", ["uniform", "clamped"])
def test_roughness_is_the_integral_by_scipy(degree, order, kind):
    basis = BSplineBasis(7, degree, (0.0, 2.0), kind)
    coeffs = np.random.default_rng(0).normal(size=7)
    # scipy evaluates between the k-th knots from both ends alone: zero coefficients on more knots extend unclamped splines.
    knots, padding = np.asarray(basis.knot_values), 0
    if kind == "uniform":
        knots, padding = np.concatenate([knots[0] - np.arange(9.0, 0, -1), knots, knots[-1] + np.arange(1.0, 10)]), 9
    spline = BSpline(knots, np.pad(coeffs, padding), degree).derivative(order)
    pieces = np.unique(basis.knot_values)
    expected = sum(quad(lambda t: spline(t) ** 2, a, b)[0] for a, b in itertools.pairwise(pieces))
    vector = torch.from_numpy(coeffs)
    assert float(vector @ roughness_matrix(basis, order) @ vector) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_differences_are_numpys(order):
    coeffs = np.random.default_rng(0).normal(size=6)
    vector = torch.from_numpy(coeffs)
    actual = vector @ difference_matrix(BSplineBasis(6, 1), order) @ vector
    assert float(actual) == pytest.approx(np.sum(np.diff(coeffs, n=order) ** 2))


def test_the_penalty_of_a_model_is_the_sum_over_its_weights():
    torch.manual_seed(0)
    first, second = BSplineBasis(5, 3, knots="clamped"), FourierBasis(4)
    model = nn.ModuleList(
        [
            SplineConv2d(2, 3, 3, first),
            SplineLinear(4, 2, second),
            SplineBatchNorm2d(3, first),
            lift(nn.Linear(2, 2), first),
        ]
    )
    model.append(nn.Linear(3, 3))  # not a spline: no penalty
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    expected = torch.zeros((), dtype=torch.float64)
    parameters = [model[0].coeffs, model[0].bias_coeffs, model[2].coeffs, model[2].bias_coeffs, *model[3].coeffs]
    for basis, each in ((first, parameters), (second, [model[1].coeffs, model[1].bias_coeffs])):
        for row in torch.cat([p.detach().flatten(0, -2) for p in each]).double():
            expected += 0.3 * row @ basis.gram(2) @ row + 0.2 * row @ row
    penalty = SplinePenalty(model, roughness=0.3, ridge=0.2)
    torch.testing.assert_close(penalty().double(), expected, rtol=1e-5, atol=0)
    penalty().backward()
    assert model[4].weight.grad is None and model[0].coeffs.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="difference with FourierBasis"):
        SplinePenalty(model, difference=1.0)


def test_a_heavy_roughness_penalty_fits_the_straight_line_through_the_data():
    """As λ grows the penalised fit goes to the linear regression, the classic limit of smoothing splines."""
    basis = BSplineBasis(12, 3, knots="clamped")
    layer = SplineLinear(1, 1, basis, bias=False)
    times = torch.linspace(0, 1, 40, dtype=torch.float64)
    y = 1 + 2 * times + torch.sin(9 * times)
    design, fits = basis(times), {}
    for factor in (1e-7, 1e4):
        matrix = factor * roughness_matrix(basis)
        fits[factor] = design @ torch.linalg.solve(design.T @ design + matrix, design.T @ y)
        layer.coeffs.data = torch.linalg.solve(design.T @ design + matrix, design.T @ y).reshape(1, 1, 12)
        # The gradient of |y − W(t)|² + penalty, by the class, is zero there.
        loss = (y - design @ layer.coeffs[0, 0]).square().sum() + SplinePenalty(layer, roughness=factor)()
        (gradient,) = torch.autograd.grad(loss, layer.coeffs)
        assert gradient.abs().max() < 1e-6 * max(1, factor)
    line = np.polynomial.Polynomial.fit(times.numpy(), y.numpy(), 1)(times.numpy())
    np.testing.assert_allclose(fits[1e4].numpy(), line, atol=1e-3)
    assert (fits[1e-7] - y).abs().max() < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roughness": 1.0}, r"roughness_order=2 with B-splines of degree 1.*lower roughness_order"),
        ({"roughness": 1.0, "roughness_order": 0}, r"roughness_order=0: must be at least 1"),
        ({"difference": 1.0, "difference_order": 4}, r"difference_order=4 with num_basis=4: must be 1 to 3"),
        ({"ridge": -1.0}, "at least 0"),
        ({}, "one above 0"),
    ],
)
def test_what_cannot_be_penalised_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        SplinePenalty(timm.create_model("gode_mnist_m4"), **options)


def test_a_model_without_splines_has_nothing_to_penalise():
    with pytest.raises(ValueError, match="ResNet has no weights that are splines"):
        SplinePenalty(timm.create_model("resnet1_mnist"), ridge=1.0)


# ---------------------------------------------------------------------------------------------------------------------
# In recipes


@pytest.fixture
def gode_recipe(recipe_dict):
    arguments = {"num_classes": 2, "num_steps": 2, "degree": 1, "knots": "clamped"}
    return recipe_dict | {"model": "gode_mnist_m4", "model_args": arguments, "compile": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"penalty": {"roughnes": 1e-4}}, r"unknown key penalty\.roughnes.*did you mean 'roughness'"),
        ({"penalty": {"ridge": -1.0}}, r"penalty\.ridge = -1\.0 .*0 or more"),
        (
            {"penalty": {"ridge": 1.0, "roughness_order": 1}},
            r"roughness_order has no effect without penalty\.roughness",
        ),
        ({"penalty": {}}, "penalty has no factor above 0"),
        ({"penalty": {"difference": 1.0, "difference_order": 0}}, r"difference_order = 0 .*1 or more"),
        ({"refine": [{"epoch": 2, "num_basis": 8}]}, "refine has epoch = 2 after 0.*epochs = 2"),
        ({"refine": [{"epoch": 1}]}, "neither num_basis nor num_steps"),
        (
            {"epochs": 9, "refine": [{"epoch": 2, "num_steps": 4}, {"epoch": 3, "num_steps": 4}]},
            "num_steps = 4 after 4",
        ),
        ({"epochs": 9, "refine": [{"epoch": 1, "num_basis": 8}, {"epoch": 2, "num_basis": 6}]}, "must rise"),
    ],
)
def test_impossible_penalties_and_refinements_are_refused(gode_recipe, change, message):
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(gode_recipe | change)


def test_a_recipe_without_them_is_what_it_was(gode_recipe):
    assert not {"penalty", "refine"} & recipe_from_dict(gode_recipe).to_dict().keys()
    both = gode_recipe | {"penalty": {"ridge": 1e-4}, "refine": [{"epoch": 1, "num_basis": 8}]}
    assert recipe_from_dict(recipe_from_dict(both).to_dict()) == recipe_from_dict(both)


def test_a_penalty_makes_the_weights_smoother(gode_recipe, tmp_path):
    """The same run with and without: less roughness, and the loss that is logged counts the penalty."""
    rough = {}
    for factor in (0.0, 0.3):
        options = {"penalty": {"roughness": factor, "roughness_order": 1}} if factor else {}
        out = tmp_path / str(factor)
        train(recipe_from_dict(gode_recipe | options), out, progress=False)
        model = timm.create_model(f"local-dir:{out}", pretrained=True)
        rough[factor] = SplinePenalty(model, roughness=1.0, roughness_order=1)().item()
        losses = [float(row["train_loss"]) for row in csv.DictReader((out / "train_log.csv").open())]
        assert (losses[0] > 20) == (factor > 0)
    assert rough[0.3] < 0.5 * rough[0.0]


@pytest.mark.parametrize("stops", [(3,), (4,), (3, 2)])
def test_coarse_to_fine_training_resumes_exactly(gode_recipe, tmp_path, stops):
    recipe = recipe_from_dict(gode_recipe | {"refine": [{"epoch": 1, "num_basis": 7}], "ema_decay": 0.9})
    train(recipe, tmp_path / "whole", progress=False)
    for i, steps in enumerate(stops):
        train(recipe, tmp_path / "parts", max_steps=steps, resume=i > 0, progress=False)
    assert train(recipe, tmp_path / "parts", resume=True, progress=False).finished
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert whole["block.field.convs.0.coeffs"].shape[-1] == 7
    model = timm.create_model(f"local-dir:{tmp_path / 'whole'}", pretrained=True)
    assert model.block.field.basis.num_basis == 7
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())


def test_every_other_part_of_a_recipe_resumes_exactly(gode_recipe, tmp_path):
    """Muon, alternating flips, rotation, cutout, mixup, channels_last and more steps late in training."""
    recipe = recipe_from_dict(
        gode_recipe
        | {
            "optimizer": {"name": "muon", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
            "augment": {"crop_padding": 2, "alternating_flip": True, "rotation": 20, "cutout": 8, "mixup": 0.4},
            "refine": [{"epoch": 1, "num_steps": 3}],
            "label_smoothing": 0.1,
            "channels_last": True,
        }
    )
    train(recipe, tmp_path / "whole", progress=False)
    train(recipe, tmp_path / "parts", max_steps=4, progress=False)
    assert train(recipe, tmp_path / "parts", resume=True, progress=False).finished
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    model = timm.create_model(f"local-dir:{tmp_path / 'whole'}", pretrained=True)
    assert len(model.block.step_sizes) == 3


def test_a_refinement_that_cannot_be_done_stops_before_training(gode_recipe, tmp_path):
    recipe = recipe_from_dict(gode_recipe | {"refine": [{"epoch": 1, "num_basis": 3}]})
    with pytest.raises(ValueError, match=r"num_basis=3.*at least 4"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="no weights that are B-splines"):
        train(
            dataclasses.replace(recipe, model="stem_mnist", model_args={"num_classes": 2}),
            tmp_path / "run",
            progress=False,
        )
