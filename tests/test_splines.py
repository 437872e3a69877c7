"""BSplineBasis against scipy.interpolate.BSpline."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from gode_zoo import BSplineBasis
from gode_zoo.splines import clamped_knots, finer_knots, insert_knots, project_basis, uniform_knots


def scipy_basis(knots, degree: int, times, order: int = 0) -> np.ndarray:
    """Every basis function at every time, right-continuous, 0 outside the knots: (S, m).

    scipy evaluates on the base interval [t_k, t_m] alone, so the knots are extended on both sides and the basis
    functions that this adds are left out.
    """
    knots = np.asarray(knots, dtype=np.float64)
    before = knots[0] - np.arange(degree + 1, 0, -1)
    after = knots[-1] + np.arange(1, degree + 2)
    extended = np.concatenate([before, knots, after])
    first, count = degree + 1, len(knots) - degree - 1
    coeffs = np.eye(len(extended) - degree - 1)[:, first : first + count]
    spline = BSpline(extended, coeffs, degree, extrapolate=False)
    return spline(np.asarray(times), nu=order)


@st.composite
def knot_vectors(draw):
    degree = draw(st.integers(0, 5))
    num_basis = draw(st.integers(1, 9))
    gaps = draw(
        st.lists(
            st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 2.0]), min_size=num_basis + degree, max_size=num_basis + degree
        )
    )
    knots = np.concatenate([[draw(st.floats(-2, 2))], gaps]).cumsum()
    if any(knots[i] == knots[i + degree + 1] for i in range(num_basis)):
        knots = knots[0] + np.arange(num_basis + degree + 1) * 0.37
    return degree, num_basis, knots


@settings(max_examples=150, deadline=None)
@given(knot_vectors(), st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=12))
def test_agrees_with_scipy_on_random_knots(vector, fractions):
    degree, num_basis, knots = vector
    span = (knots[0], knots[-1])
    basis = BSplineBasis(num_basis, degree, span, knots)
    times = torch.tensor(
        [min(span[0] + f * (span[1] - span[0]), np.nextafter(span[1], -9)) for f in fractions], dtype=torch.float64
    )
    expected = scipy_basis(basis.knot_values, degree, times.numpy())
    np.testing.assert_allclose(basis(times).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("kind", ["uniform", "clamped"])
def test_agrees_with_scipy_on_a_dense_grid(degree, kind):
    basis = BSplineBasis(8, degree, (0.5, 2.0), kind)
    times = torch.linspace(0.5, 2.0, 301, dtype=torch.float64)[:-1]
    np.testing.assert_allclose(basis(times).numpy(), scipy_basis(basis.knot_values, degree, times.numpy()), atol=1e-12)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_derivatives_agree_with_scipy(degree, order):
    basis = BSplineBasis(9, degree, (0.0, 1.0), "clamped")
    times = torch.linspace(0.013, 0.987, 57, dtype=torch.float64)
    actual = basis.derivative(times, order)
    expected = scipy_basis(basis.knot_values, degree, times.numpy(), order) if order <= degree else np.zeros((57, 9))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_is_differentiable_in_time(degree):
    basis = BSplineBasis(6, degree, (0.0, 1.0), "clamped")
    times = torch.tensor([0.07, 0.41, 0.93], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(basis, times)
    (grad,) = torch.autograd.grad(basis(times)[:, 2].sum(), times)
    torch.testing.assert_close(grad, basis.derivative(times.detach())[:, 2])


@pytest.mark.parametrize("degree", range(6))
def test_clamped_is_a_partition_of_unity_on_the_closed_span(degree):
    basis = BSplineBasis(8, degree, (0.0, 3.0), "clamped")
    times = torch.linspace(0, 3, 61, dtype=torch.float64)
    torch.testing.assert_close(basis(times).sum(-1), torch.ones(61, dtype=torch.float64))
    assert basis(times[-1])[-1] == 1.0 and basis(times[0])[0] == 1.0


@pytest.mark.parametrize("degree", range(1, 6))
def test_uniform_vanishes_at_both_ends(degree):
    basis = BSplineBasis(8, degree)
    assert basis(torch.tensor([0.0, 1.0], dtype=torch.float64)).abs().max() < 1e-15


def test_uniform_knots_are_the_papers():
    assert uniform_knots(8, 1, (0.0, 2.0)) == pytest.approx([2 * i / 9 for i in range(10)])
    assert clamped_knots(4, 2) == (0, 0, 0, 0.5, 1, 1, 1)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("kind", ["uniform", "clamped"])
def test_gram_agrees_with_fine_quadrature(degree, order, kind):
    basis = BSplineBasis(8, degree, (0.0, 1.5), kind)
    gram = basis.gram(order)
    edges = np.unique(basis.knot_values)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    total = np.zeros((8, 8))
    if order <= degree:
        for a, b in itertools.pairwise(edges):
            values = scipy_basis(basis.knot_values, degree, a + (b - a) * (nodes + 1) / 2, order)
            total += values.T @ (weights[:, None] * (b - a) / 2 * values)
    np.testing.assert_allclose(gram.numpy(), total, rtol=1e-10, atol=1e-10)
    assert torch.linalg.eigvalsh(gram).min() > -1e-9


def test_gram_stops_at_the_span():
    basis = BSplineBasis(3, 0, (0.0, 1.5), [-1.0, 0.5, 1.0, 4.0])
    torch.testing.assert_close(basis.gram().diag(), torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64))


def test_piecewise_constant_and_discontinuous_linear_special_cases():
    constant = BSplineBasis(4, 0, knots="clamped")
    torch.testing.assert_close(constant(torch.tensor([0.0, 0.25, 0.6, 1.0])), torch.eye(4)[[0, 1, 2, 3]])
    # k = 1 with double knots: the value jumps at 1/2.
    broken = BSplineBasis(4, 1, knots=[0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    torch.testing.assert_close(broken(torch.tensor(0.5)), torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert broken(torch.tensor(0.4999999))[1] > 0.999


def test_shapes_dtypes_and_precision():
    basis = BSplineBasis(5, 2, knots="clamped")
    assert basis(torch.rand(2, 3)).shape == (2, 3, 5) and basis(torch.tensor(0.3)).shape == (5,)
    assert basis(torch.rand(4, dtype=torch.bfloat16)).dtype == torch.float32
    assert not basis.state_dict()
    half = BSplineBasis(7, 2).half()
    assert half.knots.dtype == torch.float64
    np.testing.assert_array_equal(half.knots.numpy(), uniform_knots(7, 2))
    with torch.device("meta"):
        basis = BSplineBasis(5, 2)
    assert basis.to_empty(device="cpu")(torch.tensor(0.5)).sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert basis(torch.rand(4)).dtype == torch.float32


def test_derivative_of_a_vmapped_time():
    basis = BSplineBasis(5, 2, knots="clamped")
    times = torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(basis)(times), basis(times))
    torch.testing.assert_close(torch.func.vmap(torch.func.jacrev(basis))(times), basis.derivative(times))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_basis": 0, "degree": 1}, r"num_basis=0.*at least 1"),
        ({"num_basis": 2.5, "degree": 1}, r"num_basis=2.5.*integer"),
        ({"num_basis": 4, "degree": -1}, r"degree=-1.*at least 0"),
        ({"num_basis": 2, "degree": 3, "knots": "clamped"}, r"num_basis=2 with degree=3.*>= degree \+ 1 = 4"),
        ({"num_basis": 2, "degree": 1, "knots": [0, 0.5, 0.4, 1]}, r"decrease at index 2 \(0.5 then 0.4\)"),
        ({"num_basis": 2, "degree": 1, "knots": [0, 0.5, 1]}, r"3 values.*= 4"),
        ({"num_basis": 2, "degree": 1, "knots": [0, math.nan, 1, 1]}, r"finite"),
        ({"num_basis": 2, "degree": 0, "knots": [0, 0, 1]}, r"repeated more than degree \+ 1 = 1"),
        ({"num_basis": 2, "degree": 0, "knots": [0.1, 0.5, 1]}, r"does not hold t_span"),
        ({"num_basis": 2, "degree": 0, "knots": "open"}, r'knots=\'open\'.*"uniform"'),
        ({"num_basis": 2, "degree": 0, "t_span": (1.0, 1.0)}, r"t0 < t1"),
        ({"num_basis": 2, "degree": 0, "t_span": (0.0, math.inf)}, r"finite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BSplineBasis(**arguments)


def test_nan_times_and_negative_orders_are_refused():
    basis = BSplineBasis(4, 1)
    with pytest.raises(ValueError, match="1 NaN of 2"):
        basis(torch.tensor([0.1, math.nan]))
    with pytest.raises(ValueError, match="order=-1"):
        basis.derivative(torch.tensor(0.1), -1)
    with pytest.raises(ValueError, match="order=-2"):
        basis.gram(-2)


# ---------------------------------------------------------------------------------------------------------------------
# Changes of basis


@settings(max_examples=100, deadline=None)
@given(knot_vectors(), st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5))
def test_inserted_knots_leave_every_spline_as_it_is(vector, fractions):
    degree, num_basis, knots = vector
    basis = BSplineBasis(num_basis, degree, (knots[0], knots[-1]), knots)
    new = [knots[0] + f * (knots[-1] - knots[0]) for f in fractions]
    new = [time for i, time in enumerate(new) if new[:i].count(time) + list(knots).count(time) <= degree]
    finer, matrix = insert_knots(basis, new)
    assert finer.num_basis == num_basis + len(new) and sorted([*knots, *new]) == list(finer.knot_values)
    times = np.linspace(knots[0], knots[-1], 97)[:-1]
    expected = scipy_basis(knots, degree, times)
    np.testing.assert_allclose(scipy_basis(finer.knot_values, degree, times) @ matrix.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("kind", ["uniform", "clamped"])
def test_a_knot_can_be_repeated_up_to_degree_plus_one_times(degree, kind):
    basis = BSplineBasis(8, degree, (0.0, 1.0), kind)
    finer, matrix = insert_knots(basis, [0.37] * (degree + 1))
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(finer(times) @ matrix, basis(times), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=rf"0\.37: is there degree \+ 1 = {degree + 1} times"):
        insert_knots(finer, [0.37])
    with pytest.raises(ValueError, match="strictly between"):
        insert_knots(basis, [1.0])


def test_finer_knots_cut_the_widest_intervals_into_equal_parts():
    clamped = BSplineBasis(4, 1, (0.0, 1.0), "clamped")  # three intervals
    assert finer_knots(clamped, 7) == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert finer_knots(clamped, 4) == []
    assert finer_knots(BSplineBasis(3, 1, knots=[0.0, 0.0, 0.6, 1.0, 1.0]), 5) == pytest.approx([0.3, 0.8])
    assert finer_knots(BSplineBasis(1, 0), 3) == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(ValueError, match=r"num_basis=3.*at least 4, or compress"):
        finer_knots(clamped, 3)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("kind", ["uniform", "clamped"])
def test_projection_is_the_least_squares_fit(degree, kind):
    source, target = BSplineBasis(12, degree, (0.0, 2.0), kind), BSplineBasis(7, min(degree + 1, 5), (0.0, 2.0), kind)
    matrix = project_basis(source, target).numpy()
    # The residual is orthogonal to every function of the target, by scipy's adaptive-free fine quadrature.
    edges = np.unique([*source.knot_values, *target.knot_values])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    products = np.zeros((7, 12))
    for a, b in itertools.pairwise(edges):
        times = a + (b - a) * (nodes + 1) / 2
        theirs = scipy_basis(target.knot_values, target.degree, times)
        residual = scipy_basis(source.knot_values, degree, times) - theirs @ matrix
        products += theirs.T @ (weights[:, None] * (b - a) / 2 * residual)
    np.testing.assert_allclose(products, 0.0, atol=1e-12)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("kind", ["uniform", "clamped"])
def test_projection_undoes_insertion(degree, kind):
    basis = BSplineBasis(6, degree, (0.0, 1.0), kind)
    finer, matrix = insert_knots(basis, finer_knots(basis, 15))
    torch.testing.assert_close(
        project_basis(finer, basis) @ matrix, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_projection_onto_dependent_functions_takes_the_smallest_coefficients():
    outside = BSplineBasis(3, 0, (0.0, 1.0), [-1.0, -0.5, 0.5, 1.0])  # the first function lies before the span
    constant = BSplineBasis(1, 0)
    torch.testing.assert_close(project_basis(constant, outside)[:, 0], torch.tensor([0.0, 1.0, 1.0]).double())
    with pytest.raises(ValueError, match=r"t_span=\(0\.0, 2\.0\).*\(0\.0, 1\.0\)"):
        project_basis(constant, BSplineBasis(2, 0, (0.0, 2.0)))
