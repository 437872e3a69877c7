"""The pictures show the weights and the images that they are said to show."""

import sys

import numpy as np
import pytest
import timm
import torch
from scipy.interpolate import BSpline

import gode_zoo  # noqa: F401  (registers the models)
from gode_zoo import BSplineBasis, SplineConv2d
from gode_zoo.plots import new_figure, plot_kernel, plot_predictions


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("gode_mnist_m4", degree=2)


def curves(figure):
    """Those of the weights: they alone have a label."""
    (ax,) = figure.axes
    return {line.get_label(): line.get_data() for line in ax.lines if not line.get_label().startswith("_")}


def test_curves_are_the_spline_of_the_coefficients(model):
    drawn = curves(plot_kernel(model, conv=1, out_channel=3, in_channel=5))
    layer = model.block.field.convs[1]
    assert list(drawn) == [f"{row}, {column}" for row in (1, 2, 3) for column in (1, 2, 3)]
    times, weights = drawn["2, 3"]
    knots, k = np.array(layer.basis.knot_values), layer.basis.degree
    pieces = [BSpline.basis_element(knots[i : i + k + 2], extrapolate=False)(times) for i in range(4)]
    expected = np.nan_to_num(pieces).T @ layer.coeffs[3, 5, 1, 2].detach().double().numpy()
    np.testing.assert_allclose(weights, expected, atol=1e-7)
    assert times[0] == 0.0 and times[-1] == 1.0


def test_default_kernel_is_the_largest(model):
    coeffs = model.block.field.convs[0].coeffs
    with torch.no_grad():
        saved = coeffs[7, 11].clone()
        coeffs[7, 11] = 9.0
        title = plot_kernel(model).axes[0].get_title()
        coeffs[7, 11] = saved
    assert "channel 11 to 7" in title


def test_strokes_mark_the_grid_of_the_solver(model):
    marks = [line for line in plot_kernel(model).axes[0].lines if line.get_marker() == "|"]
    assert [len(line.get_xdata()) for line in marks] == [21]
    adaptive = timm.create_model("gode_mnist_m4", solver="dopri5")
    assert not [line for line in plot_kernel(adaptive).axes[0].lines if line.get_marker() == "|"]


def test_a_single_layer_of_any_kernel_size_and_precision():
    layer = SplineConv2d(4, 2, (1, 2), BSplineBasis(3, 1, (0.0, 2.0)), groups=2).to(torch.bfloat16)
    drawn = curves(plot_kernel(layer, out_channel=1, in_channel=1))
    assert list(drawn) == ["1, 1", "1, 2"] and drawn["1, 1"][0][-1] == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv": 2}, "conv=2: must be 0 to 1"),
        ({"conv": -1}, "conv=-1"),
        ({"out_channel": 64, "in_channel": 0}, "out_channel=64: must be 0 to 63"),
        ({"out_channel": 0, "in_channel": 64}, "in_channel=64"),
        ({"out_channel": 0}, "give both"),
    ],
)
def test_wrong_kernels(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_kernel(model, **arguments)


def test_no_spline_convolution():
    with pytest.raises(ValueError, match="Linear has no SplineConv2d"):
        plot_kernel(torch.nn.Linear(2, 2))


def test_predictions():
    images = torch.rand(5, 1, 6, 6)
    figure = plot_predictions(images, torch.tensor([0, 1, 2, 1, 0]), [0, 1, 2, 2, 0], ["a", "b", "c"], columns=3)
    filled = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 6 and len(filled) == 5
    assert [ax.get_title() for ax in filled] == ["a", "b", "c", "b, is c", "a"]
    assert [ax.title.get_color() for ax in filled] == ["green", "green", "green", "red", "green"]
    np.testing.assert_array_equal(filled[3].images[0].get_array(), images[3, 0].numpy())


def test_predictions_of_colour_images_without_labels(tmp_path):
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    figure = plot_predictions(images, [7, 8])
    assert [ax.get_title() for ax in figure.axes] == ["7", "8"]
    assert figure.axes[0].images[0].get_array().shape == (4, 4, 3)
    figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_both_in_one_figure(model):
    figure = new_figure(4, 4)
    left, right = figure.subfigures(1, 2)
    assert plot_predictions(torch.rand(2, 1, 4, 4), [0, 1], figure=left) is left
    assert plot_kernel(model, figure=right) is right
    assert len(figure.axes) == 3


@pytest.mark.parametrize(
    ("images", "predicted", "arguments", "message"),
    [
        (torch.rand(1, 4, 4), [0], {}, "shape"),
        (torch.rand(0, 1, 4, 4), [], {}, "at least 1"),
        (torch.rand(1, 2, 4, 4), [0], {}, "shape"),
        (torch.rand(2, 1, 4, 4), [0], {}, "predicted has 1 entries for 2 images"),
        (torch.rand(2, 1, 4, 4), [0, 1], {"labels": [0]}, "labels has 1 entries"),
        (torch.rand(2, 1, 4, 4), [0, 1], {"columns": 0}, "columns=0"),
    ],
)
def test_wrong_predictions(images, predicted, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_predictions(images, predicted, **arguments)


def test_missing_matplotlib_names_the_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"gode_zoo\[plots\]"):
        plot_kernel(model)
