"""Finite mixtures of Gaussian laws, whose covariance is drawn once for each prompt."""

import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, NotPositiveDefiniteError
from icl_lab.tasks import FiniteDiagonal, Gaussian, GaussianMixture, RotatedSpectrum

COVARIANCES = np.array([[[1.0, 0.3], [0.3, 0.6]], [[4.0, -1.0], [-1.0, 2.0]]])
MATRIX = np.array([[0.7, -0.4], [1.1, 0.3]])
LAW = GaussianMixture(COVARIANCES, [0.75, 0.25])


def test_two_inputs_of_a_prompt_have_the_fourth_moment_of_a_shared_covariance(key, agrees):
    """E x_1 x_1^T A x_2 x_2^T = E Λ A Λ."""
    draws = np.asarray(jax.vmap(lambda key: LAW.sample(key, 2))(jax.random.split(key, 40_000)))
    first, second = draws[:, 0], draws[:, 1]
    product = np.einsum("ni,nj,jk,nk,nl->nil", first, first, MATRIX, second, second)
    assert agrees(product, np.einsum("s,sij,jk,skl->il", LAW.probabilities, COVARIANCES, MATRIX, COVARIANCES))
    assert not agrees(product, LAW.covariance @ MATRIX @ LAW.covariance)


def test_a_mixture_of_one_is_the_gaussian():
    alone, gaussian = GaussianMixture(COVARIANCES[:1], [1.0]), Gaussian(COVARIANCES[0])
    np.testing.assert_allclose(alone.covariance, gaussian.covariance, rtol=1e-15)
    np.testing.assert_allclose(alone.fourth_moment(MATRIX), gaussian.fourth_moment(MATRIX), rtol=1e-14)


def test_the_mixture_of_the_support_of_a_random_diagonal_has_its_moments():
    diagonal = FiniteDiagonal([[1.0, 3.0], [0.5, 2.0]], [[0.4, 0.6], [0.9, 0.1]])
    mixture = GaussianMixture(*diagonal.support_covariances())
    np.testing.assert_allclose(mixture.covariance, diagonal.covariance, rtol=1e-14)
    np.testing.assert_allclose(mixture.fourth_moment(MATRIX), diagonal.fourth_moment(MATRIX), rtol=1e-14)


def test_which_laws_have_a_finite_set_of_covariances():
    matrices, probabilities = Gaussian(COVARIANCES[0]).support_covariances()
    np.testing.assert_array_equal(matrices, COVARIANCES[:1])
    np.testing.assert_array_equal(probabilities, [1.0])
    np.testing.assert_array_equal(LAW.support_covariances()[0], COVARIANCES)
    assert RotatedSpectrum([[1.0], [2.0]], [[1.0], [1.0]]).support_covariances() is None


@pytest.mark.parametrize(
    ("covariances", "probabilities", "error", "message"),
    [
        (np.eye(2), [1.0], InvalidValueError, r"shape \(S, d, d\).*got \(2, 2\) and \(1,\)"),
        (COVARIANCES, [1.0], InvalidValueError, r"got \(2, 2, 2\) and \(1,\)"),
        (COVARIANCES, [0.5, 0.6], InvalidValueError, "sum to 1.*off by 0.1"),
        (COVARIANCES, [1.5, -0.5], InvalidValueError, "must be >= 0"),
        ([np.eye(2), -np.eye(2)], [0.5, 0.5], NotPositiveDefiniteError, r"`covariances\[1\]` must be positive definite"),
    ],
)
def test_bad_mixtures_are_refused(covariances, probabilities, error, message):
    with pytest.raises(error, match=message):
        GaussianMixture(covariances, probabilities)
