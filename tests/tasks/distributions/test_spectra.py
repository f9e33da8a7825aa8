import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks.distributions import spectra

ROUNDING = 1e-13  # sums of at most 6 products of numbers of order 1 to 10


def test_named_spectra_are_the_ones_worked_by_hand():
    np.testing.assert_allclose(spectra.isotropic(3, 0.5), [0.5, 0.5, 0.5], rtol=0)
    np.testing.assert_allclose(spectra.geometric(3, 16.0, largest=8.0), [8.0, 2.0, 0.5], rtol=ROUNDING)
    np.testing.assert_allclose(spectra.power_law(4, 2.0, largest=3.0), [3, 3 / 4, 1 / 3, 3 / 16], rtol=ROUNDING)
    np.testing.assert_allclose(spectra.spiked(4, [9.0, 4.0], bulk=0.1), [9.0, 4.0, 0.1, 0.1], rtol=0)
    np.testing.assert_allclose(spectra.geometric(1, 1.0, largest=2.0), [2.0], rtol=0)


def test_covariance_has_the_given_spectrum_and_eigenvectors():
    spectrum, rotation = spectra.geometric(5, 100.0), spectra.random_rotation(5, seed=3)
    matrix = spectra.from_spectrum(spectrum, rotation)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix @ rotation, rotation * spectrum[None, :], atol=ROUNDING)
    np.testing.assert_array_equal(spectra.from_spectrum([2.0, 0.0]), np.diag([2.0, 0.0]))


def test_random_rotation_is_orthogonal_and_depends_on_the_seed_only():
    rotation = spectra.random_rotation(6, seed=1)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(6), atol=ROUNDING)
    np.testing.assert_array_equal(rotation, spectra.random_rotation(6, seed=1))
    assert np.max(np.abs(rotation - spectra.random_rotation(6, seed=2))) > 0.1


def test_random_rotation_is_haar_not_biased_by_the_signs_of_qr(agrees):
    # Haar entries have mean 0 and E Q_ij^2 Q_ij^2 = 3 / (d (d + 2)); QR without the sign fix has a mean.
    draws = np.stack([spectra.random_rotation(2, seed) for seed in range(4000)])
    assert agrees(draws, np.zeros((2, 2)))
    assert agrees(draws**4, np.full((2, 2), 3 / 8))


def test_root_takes_its_cheapest_form_and_squares_to_the_covariance(rng):
    full = spectra.from_spectrum([4.0, 1.0, 0.25], spectra.random_rotation(3, seed=0))
    draws = rng.standard_normal((7, 3))
    assert spectra.covariance_root(np.eye(3)) is None
    assert spectra.covariance_root(np.diag([4.0, 1.0, 0.0])).shape == (3,)
    for matrix in (np.eye(3), np.diag([4.0, 1.0, 0.0]), full):
        rows = np.asarray(spectra.apply_root(spectra.covariance_root(matrix), jnp.asarray(draws)))
        np.testing.assert_allclose(rows @ rows.T, draws @ matrix @ draws.T, atol=1e2 * ROUNDING)
    traced = jax.jit(lambda m: spectra.covariance_root(m))(full)
    np.testing.assert_allclose(np.asarray(traced), spectra.covariance_root(full), atol=ROUNDING)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectra.isotropic(0), "`dim` must be an integer >= 1; got 0"),
        (lambda: spectra.isotropic(2, -1.0), "`variance` must be a finite number > 0"),
        (lambda: spectra.geometric(3, 0.5), "`condition_number` must be finite and >= 1.*got 0.5"),
        (lambda: spectra.geometric(1, 2.0), "`condition_number` must be 1 when dim = 1"),
        (lambda: spectra.power_law(3, -1.0), "`exponent` must be a finite number >= 0"),
        (lambda: spectra.spiked(2, [3.0, 2.0, 1.0]), "`spikes` must hold at most dim = 2"),
        (lambda: spectra.spiked(2, [0.0]), "`spikes` must be a finite number > 0"),
        (lambda: spectra.from_spectrum([1.0, -2.0]), "`spectrum` must hold finite eigenvalues >= 0.*-2"),
        (lambda: spectra.from_spectrum([[1.0]]), r"`spectrum` must be a \(d,\) array.*\(1, 1\)"),
        (lambda: spectra.from_spectrum([1.0, 2.0], np.eye(3)), r"`rotation` must have shape \(2, 2\)"),
        (lambda: spectra.from_spectrum([1.0, 2.0], [[1.0, 1.0], [0.0, 1.0]]), "`rotation` must be orthogonal"),
        (lambda: spectra.as_covariance(np.eye(3), 2, "task_covariance"), r"`task_covariance` must be .*\(3, 3\)"),
    ],
)
def test_bad_spectra_are_refused_by_name(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()
