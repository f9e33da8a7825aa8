"""The distance of matrices to the multiples of the identity."""

import numpy as np

from icl_lab import analysis


def test_the_distance_to_multiples_of_the_identity():
    matrix = np.diag([1.0, 3.0])
    np.testing.assert_allclose(analysis.distance_to_identity(matrix), np.sqrt(2 / 10))
    covariance = np.array([[1.0, 0.6], [0.6, 0.5]])
    stack = np.stack([np.linalg.inv(covariance), -3 * np.linalg.inv(covariance)])
    np.testing.assert_allclose(analysis.distance_to_identity(stack, covariance), 0, atol=1e-12)
    assert np.all(analysis.distance_to_identity(stack) > 0.1)
    assert np.isnan(analysis.distance_to_identity(np.zeros((2, 2))))
