"""The global bases against scipy and torchdyn; what every Basis has."""

import numpy as np
import pytest
import torch
from scipy import special
from scipy.integrate import quad_vec
from torchdyn.nn import galerkin

from gode_zoo.bases import GLOBAL_BASES, ChebyshevBasis, FourierBasis, PolynomialBasis, RBFBasis

TIMES = torch.linspace(1.0, 3.0, 41, dtype=torch.float64)
S = (TIMES.numpy() - 1.0) / 2.0  # of the span (1, 3)


def test_fourier_is_torchdyns_with_the_period_of_two_spans():
    values = FourierBasis(7, (1.0, 3.0))(TIMES)
    for time, row in zip(S, values, strict=True):
        cosines, sines = galerkin.Fourier(4).forward(torch.arange(4.0).double(), torch.tensor(np.pi * time))
        torch.testing.assert_close(row[[0, 1, 3, 5]], cosines)
        torch.testing.assert_close(row[[2, 4, 6]], sines[1:])


def test_polynomial_is_torchdyns():
    values = PolynomialBasis(5, (1.0, 3.0))(TIMES)
    for time, row in zip(S, values, strict=True):
        (theirs,) = galerkin.Polynomial(5).forward(torch.arange(5.0).double(), torch.tensor(time))
        torch.testing.assert_close(row, theirs)


def test_chebyshev_and_rbf_are_the_formulas():
    expected = special.eval_chebyt(np.arange(6), 2 * S[:, None] - 1)
    np.testing.assert_allclose(ChebyshevBasis(6, (1.0, 3.0))(TIMES).numpy(), expected, atol=1e-12)
    expected = np.exp(-(((S[:, None] - np.arange(5) / 4) / 0.25) ** 2))
    np.testing.assert_allclose(RBFBasis(5, (1.0, 3.0))(TIMES).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("kind", GLOBAL_BASES)
@pytest.mark.parametrize("num_basis", [1, 2, 7])
def test_derivatives_and_gram_matrices(kind, num_basis):
    basis = GLOBAL_BASES[kind](num_basis, (1.0, 3.0))
    assert basis(TIMES.float()).shape == (41, num_basis) and basis(TIMES.float()).dtype == torch.float32
    derivative = torch.func.vmap(torch.func.jacfwd(basis))
    torch.testing.assert_close(basis.derivative(TIMES), derivative(TIMES))
    second = torch.func.vmap(torch.func.jacfwd(torch.func.jacfwd(basis)))
    torch.testing.assert_close(basis.derivative(TIMES, 2), second(TIMES), atol=1e-8, rtol=1e-8)
    for order in range(3):

        def product(t, order=order):
            values = basis.derivative(torch.tensor(t, dtype=torch.float64), order).numpy()
            return np.outer(values, values)

        expected, _ = quad_vec(product, 1.0, 3.0, epsabs=1e-10, epsrel=1e-12)
        np.testing.assert_allclose(basis.gram(order).numpy(), expected, atol=1e-8, rtol=1e-9)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"num_basis=0.*at least 1"):
        FourierBasis(0)
    with pytest.raises(ValueError, match=r"order=-1"):
        RBFBasis(3).derivative(torch.tensor(0.1), -1)
    with pytest.raises(ValueError, match="1 NaN of 1"):
        ChebyshevBasis(3)(torch.tensor(float("nan")))
