"""Every way to write a covariance in a configuration."""

import numpy as np
import pytest

from icl_lab.config.covariance import covariance_matrix
from icl_lab.core.errors import InvalidValueError

EPS = np.finfo(float).eps


def test_null_is_the_identity_and_a_list_a_spectrum_and_rows_a_matrix():
    assert np.array_equal(covariance_matrix(None, 3), np.eye(3))
    assert np.array_equal(covariance_matrix([2, 1, 0.5], 3), np.diag([2.0, 1.0, 0.5]))
    assert np.array_equal(covariance_matrix([[2, 1], [1, 3]], 2), [[2.0, 1.0], [1.0, 3.0]])


def test_named_spectra_are_the_ones_worked_by_hand():
    # Powers of small integers: a few units in the last place.
    by_hand = np.diag([1.0, 1 / 3, 1 / 9])
    np.testing.assert_allclose(covariance_matrix({"condition_number": 9}, 3), by_hand, rtol=4 * EPS, atol=0)
    np.testing.assert_allclose(covariance_matrix({"power_law": 2}, 3), np.diag([1.0, 1 / 4, 1 / 9]), rtol=4 * EPS, atol=0)
    np.testing.assert_allclose(np.diag(covariance_matrix("anisotropic", 3)), [1.0, 0.5, 0.25], rtol=4 * EPS)
    assert covariance_matrix("anisotropic", 1) == 1.0


def test_rotation_keeps_the_spectrum_and_symmetry_and_mixes_the_axes():
    rotated = covariance_matrix([4.0, 1.0, 0.25], 3, rotate=7)
    assert np.array_equal(rotated, rotated.T)
    # eigvalsh of a 3 x 3 matrix of norm 4: errors of a few eps times the norm.
    np.testing.assert_allclose(np.linalg.eigvalsh(rotated), [0.25, 1.0, 4.0], atol=40 * EPS)
    assert np.max(np.abs(rotated - np.diag(np.diag(rotated)))) > 0.1
    assert not np.allclose(rotated, covariance_matrix([4.0, 1.0, 0.25], 3, rotate=8))


def test_rotation_does_not_hide_an_asymmetric_matrix():
    rotated = covariance_matrix([[1.0, 0.5], [0.0, 1.0]], 2, rotate=0)
    assert np.max(np.abs(rotated - rotated.T)) > 0.1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], r"dim = 3; got shape \(2,\)"),
        ([[1.0, 2.0], [3.0, 4.0]], r"dim = 3; got shape \(2, 2\)"),
        ("isotropic", "must be null, anisotropic, .* got 'isotropic'"),
        ([[1.0], [1.0, 2.0]], "must be null, anisotropic"),
        ({"condition": 3}, "must be null, anisotropic"),
        ({"condition_number": "big"}, "must be null, anisotropic"),
        ({"condition_number": 3, "power_law": 1}, "must be null, anisotropic"),
        ({"condition_number": 0.5}, ">= 1, .* got 0.5"),
    ],
)
def test_other_forms_are_refused_with_the_accepted_ones(value, message):
    with pytest.raises(InvalidValueError, match=message):
        covariance_matrix(value, 3)


def test_negative_rotation_seed_is_refused():
    with pytest.raises(InvalidValueError, match=r"`task\.rotate` must be.*got -1"):
        covariance_matrix(None, 3, rotate=-1)
