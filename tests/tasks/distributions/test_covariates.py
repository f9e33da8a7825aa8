import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError, NotPositiveDefiniteError
from icl_lab.tasks import (
    CovariateDistribution,
    ExponentialDiagonal,
    FiniteDiagonal,
    Gaussian,
    GaussianMixture,
    IndependentCoordinates,
    RotatedSpectrum,
    Sphere,
    StudentT,
    TwoSizes,
    Uniform,
    from_spectrum,
    random_rotation,
)

DRAWS = 40_000
VALUES = [[0.5, 2.0], [1.0, 3.0], [0.2, 1.0]]
PROBABILITIES = [[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]]
MATRIX = np.array([[1.0, -0.4, 0.3], [0.8, 0.5, -1.1], [0.2, 0.6, -0.7]])  # not symmetric: transposes must show
COVARIANCE = from_spectrum([2.0, 1.0, 0.5], random_rotation(3, seed=5))


def laplace(key, shape):
    return jax.random.laplace(key, shape) / np.sqrt(2)


DISTRIBUTIONS = {
    "gaussian": Gaussian(COVARIANCE),
    "gaussian_diagonal": Gaussian([2.0, 1.0, 0.5]),
    "gaussian_standard": Gaussian(np.eye(3)),
    "uniform": Uniform(3),
    "uniform_narrow": Uniform(3, half_width=0.5),
    "student": StudentT(3, degrees_of_freedom=30.0, scale=[1.0, 0.5, 2.0]),
    "two_sizes": TwoSizes(3, kurtosis=[1.0, 2.0, 7.0], variance=[1.0, 0.5, 2.0]),
    "laplace": IndependentCoordinates(3, laplace, kurtosis=6.0, sixth=90.0, variance=[1.0, 0.5, 2.0]),
    "sphere": Sphere(3, radius=1.5),
    "finite_diagonal": FiniteDiagonal(VALUES, PROBABILITIES),
    "exponential_diagonal": ExponentialDiagonal(3, scale=0.7),
    "rotated_spectrum": RotatedSpectrum(VALUES, PROBABILITIES),
    "gaussian_mixture": GaussianMixture([COVARIANCE, np.diag([0.2, 3.0, 1.0]), np.eye(3)], [0.5, 0.3, 0.2]),
}


@functools.cache
def pairs(name):
    """(DRAWS, 3, d): three inputs of one prompt, many prompts; shared by the tests below."""
    keys = jax.random.split(jax.random.key(11), DRAWS)
    return np.asarray(jax.vmap(lambda k: DISTRIBUTIONS[name].sample(k, 3))(keys))


@pytest.fixture(params=DISTRIBUTIONS)
def sampled(request):
    return DISTRIBUTIONS[request.param], pairs(request.param)


def test_sampled_inputs_have_the_stated_covariance_and_mean_zero(sampled, agrees):
    distribution, draws = sampled
    assert agrees(draws[:, 1], np.zeros(3))
    assert agrees(draws[:, 1, :, None] * draws[:, 1, None, :], distribution.covariance)


def test_sampled_inputs_have_the_stated_fourth_moment(sampled, agrees):
    distribution, draws = sampled
    x = draws[:, 0]
    quadratic = np.einsum("ni,ij,nj->n", x, MATRIX, x)
    assert agrees(quadratic[:, None, None] * x[:, :, None] * x[:, None, :], distribution.fourth_moment(MATRIX))


def test_inputs_of_one_prompt_share_a_random_covariance_and_nothing_else(sampled, agrees):
    distribution, draws = sampled
    squares = draws[:, 0, :, None] ** 2 * draws[:, 1, None, :] ** 2
    independent = np.outer(np.diagonal(distribution.covariance), np.diagonal(distribution.covariance))
    assert agrees(squares, independent) is not distribution.shared_covariance
    assert agrees(draws[:, 0, :, None] * draws[:, 1, None, :], np.zeros((3, 3)))


def test_shared_diagonal_covariance_has_the_second_moment_of_its_support(agrees):
    spectra, probabilities = DISTRIBUTIONS["finite_diagonal"].support()
    draws = pairs("finite_diagonal")
    expected = np.einsum("s,si,sj->ij", probabilities, spectra, spectra)
    assert agrees(draws[:, 0, :, None] ** 2 * draws[:, 1, None, :] ** 2, expected)


def test_the_gaussian_formula_is_rejected_on_uniform_inputs(agrees):
    # Twin of the fourth-moment test: the same sample sizes tell the kurtosis of a uniform distribution from a Gaussian one.
    distribution = DISTRIBUTIONS["uniform"]
    x = pairs("uniform")[:, 0]
    fourth = np.einsum("ni,ij,nj->n", x, MATRIX, x)[:, None, None] * x[:, :, None] * x[:, None, :]
    assert not agrees(fourth, Gaussian(distribution.covariance).fourth_moment(MATRIX))


def test_uniform_and_sphere_stay_on_their_supports():
    cube, ball = pairs("uniform_narrow"), pairs("sphere")
    assert 0.49 < np.max(np.abs(cube)) <= 0.5
    np.testing.assert_allclose(np.linalg.norm(ball, axis=2), 1.5, rtol=1e-14)


def test_support_lists_every_spectrum_with_its_probability():
    spectra, probabilities = DISTRIBUTIONS["finite_diagonal"].support()
    expected = {
        values: np.prod([PROBABILITIES[i][VALUES[i].index(value)] for i, value in enumerate(values)])
        for values in itertools.product(*VALUES)
    }
    assert {tuple(row): p for row, p in zip(spectra, probabilities, strict=True)} == pytest.approx(expected, rel=1e-14)


def test_padded_values_of_probability_zero_are_neither_listed_nor_drawn(key, agrees):
    distribution = FiniteDiagonal([[1.0, 4.0, 9.0], [2.0, 2.5, 9.0], [3.0, 9.0, 9.0]], [[0.5, 0.5, 0.0], [1, 0, 0], [1, 0, 0]])
    spectra, probabilities = distribution.support()
    np.testing.assert_array_equal(spectra, [[1.0, 2.0, 3.0], [4.0, 2.0, 3.0]])
    np.testing.assert_array_equal(probabilities, [0.5, 0.5])
    draws = np.asarray(jax.vmap(lambda k: distribution.sample(k, 3))(jax.random.split(key, DRAWS)))
    assert agrees(draws[:, 0] ** 2, np.array([2.5, 2.0, 3.0]))
    assert agrees(draws[:, 0] ** 4, 3 * np.array([8.5, 4.0, 9.0]))


def test_point_supports_are_the_fixed_covariances():
    spectrum = np.array([2.0, 1.0, 0.5])
    fixed, gaussian = FiniteDiagonal(spectrum[:, None], np.ones((3, 1))), Gaussian(spectrum)
    np.testing.assert_allclose(fixed.fourth_moment(MATRIX), gaussian.fourth_moment(MATRIX), rtol=1e-13)
    equal = RotatedSpectrum(np.full((3, 1), 1.7), np.ones((3, 1)))
    expected = Gaussian(np.full(3, 1.7)).fourth_moment(MATRIX)
    np.testing.assert_allclose(equal.fourth_moment(MATRIX), expected, rtol=1e-13, atol=1e-13)


def test_moments_accept_traced_matrices():
    for name in ("gaussian", "finite_diagonal", "rotated_spectrum", "gaussian_mixture"):  # one for each formula
        distribution = DISTRIBUTIONS[name]
        traced = eqx.filter_jit(distribution.fourth_moment)(jnp.asarray(MATRIX))
        # Two evaluation orders of the same sums of at most 9 products.
        np.testing.assert_allclose(np.asarray(traced), distribution.fourth_moment(MATRIX), rtol=1e-13, atol=1e-13)


@given(seed=st.integers(0, 10**6), rotation_seed=st.integers(0, 10**6))
def test_rotating_the_inputs_rotates_the_fourth_moment(seed, rotation_seed):
    """E[Rx x^T R^T A Rx x^T R^T] = R E[x x^T (R^T A R) x x^T] R^T: the Gaussian distribution of R Λ R^T, and invariant ones."""
    matrix = np.random.default_rng(seed).standard_normal((3, 3))
    rotation = random_rotation(3, rotation_seed)
    rotated = from_spectrum([2.0, 1.0, 0.5], rotation @ random_rotation(3, seed=5))
    cases = [(DISTRIBUTIONS["gaussian"], Gaussian(rotated))] + [(DISTRIBUTIONS[n],) * 2 for n in ("sphere", "rotated_spectrum")]
    for distribution, image in cases:
        expected = rotation @ distribution.fourth_moment(rotation.T @ matrix @ rotation) @ rotation.T
        # Rounding of products of five matrices with entries up to about 10.
        np.testing.assert_allclose(image.fourth_moment(matrix), expected, atol=1e-11)


@given(seed=st.integers(0, 10**6), order=st.permutations(range(3)))
def test_permuting_exchangeable_coordinates_permutes_the_fourth_moment(seed, order):
    matrix = np.random.default_rng(seed).standard_normal((3, 3))
    permuted = np.ix_(order, order)
    for name in ("uniform", "exponential_diagonal"):
        moment = DISTRIBUTIONS[name].fourth_moment
        np.testing.assert_allclose(moment(matrix[permuted]), moment(matrix)[permuted], atol=1e-12)  # rounding


def test_a_law_that_says_nothing_of_its_inputs_shares_a_covariance_unless_its_coordinates_are_independent():
    class Dependent(CovariateDistribution):
        dim: int = 2
        covariance = np.eye(2)

        def sample(self, key, count):
            return jax.random.rademacher(key, (count, self.dim), float)

        def fourth_moment(self, matrix):
            return matrix

    class Mine(CovariateDistribution):
        dim: int = 2
        independent = True

        def sample(self, key, count):
            return jax.random.rademacher(key, (count, self.dim), float)

        def moments(self, order):
            return np.ones(self.dim)

    class Mixed(Mine):
        shared_covariance = True

    assert Dependent().shared_covariance
    assert Mixed().shared_covariance
    assert not Mine().shared_covariance
    assert Mine().support_covariances() is None
    np.testing.assert_array_equal(Mine().covariance, np.eye(2))
    np.testing.assert_array_equal(Mine().fourth_moment(np.eye(2)), 2 * np.eye(2))


def test_a_law_without_moments_is_refused():
    class Silent(CovariateDistribution):
        dim: int = 2

        def sample(self, key, count):
            return jax.random.normal(key, (count, self.dim))

    class Independent(Silent):
        independent = True

    with pytest.raises(InvalidValueError, match="`Silent` must have `covariance` and `fourth_moment`"):
        Silent()
    with pytest.raises(InvalidValueError, match="`Independent` has independent coordinates, so it must have"):
        Independent()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Gaussian([[1.0, 0.2], [0.1, 1.0]]), NotPositiveDefiniteError, "`covariance` must be symmetric"),
        (lambda: Gaussian([1.0, 0.0]), NotPositiveDefiniteError, "`covariance` must be positive definite.*d = 2"),
        (lambda: Gaussian(np.ones((2, 3))), InvalidValueError, r"`covariance` must be .*\(2, 3\)"),
        (lambda: Gaussian(2.0), InvalidValueError, r"`covariance` must be .*got shape \(\)"),
        (lambda: Gaussian([1.0, np.nan]), InvalidValueError, "`covariance` must be finite"),
        (lambda: Uniform(0), InvalidValueError, "`dim` must be an integer >= 1; got 0"),
        (lambda: Uniform(2, half_width=0.0), InvalidValueError, "`half_width` must be a finite number > 0.*got 0.0"),
        (lambda: Sphere(2, radius=-1.0), InvalidValueError, "`radius` must be a finite number > 0.*got -1.0"),
        (lambda: Sphere(-1), InvalidValueError, "`dim` must be an integer >= 1; got -1"),
        (lambda: ExponentialDiagonal(2, scale=np.inf), InvalidValueError, "`scale` must be a finite number > 0"),
        (lambda: ExponentialDiagonal(0), InvalidValueError, "`dim` must be an integer >= 1; got 0"),
        (lambda: FiniteDiagonal([[1.0, 2.0]], [[1.0]]), InvalidValueError, r"must share one shape \(d, m\)"),
        (lambda: FiniteDiagonal([[0.0, 2.0]], [[0.5, 0.5]]), InvalidValueError, "`values` must be finite and > 0"),
        (lambda: RotatedSpectrum([[1.0, 2.0]], [[0.5, 0.6]]), InvalidValueError, "rows that sum to 1.*off by 0.1"),
        (lambda: RotatedSpectrum([[1.0, 2.0]], [[1.5, -0.5]]), InvalidValueError, "`probabilities` must be >= 0"),
        (
            lambda: FiniteDiagonal(np.ones((30, 2)), np.full((30, 2), 0.5)).support(),
            MemoryBudgetError,
            "would enumerate 1073741824 spectra, more than the 1048576",
        ),
    ],
)
def test_bad_distributions_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
