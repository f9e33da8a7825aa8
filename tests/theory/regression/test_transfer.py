"""Errors on other distributions of prompts, against reference numbers, quadrature of the labels' moments, and each other."""

import math

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.regression import lsa, nonlinear, transfer, zhang2023
from icl_lab.theory.regression.problem import Problem

COVARIANCE = np.diag([2.0, 1.0, 0.5])
VECTOR = np.array([1.0, -0.5, 2.0])
LENGTH, TEST_LENGTH = 10, 6
PRINTED = 1e-9

FUNCTIONS = {
    "linear": lambda s: s,
    "relu": lambda s: np.maximum(s, 0),
    "sign": np.sign,
    "cubic": lambda s: s**3,
    "square": lambda s: s**2,
    "constant": np.ones_like,
}
REFERENCE = {
    "linear": 1.8311807822,
    "relu": 1.9319819739,
    "sign": 0.6242427881,
    "cubic": 1291.937838,
    "square": 83.5410914,
    "constant": 1.2332357087,
}


@pytest.fixture
def general(rng):
    root = rng.normal(size=(3, 3))
    return root @ root.T + 0.3 * np.eye(3)


@pytest.mark.parametrize("label", transfer.LABELS)
def test_reference_errors(label):
    distribution = transfer.single_index_distribution(label, VECTOR, COVARIANCE)
    assert transfer.error(COVARIANCE, LENGTH, TEST_LENGTH, distribution) == pytest.approx(REFERENCE[label], rel=2e-9)


def test_reference_error_with_noise():
    distribution = transfer.single_index_distribution("linear", VECTOR, COVARIANCE, 0.5)
    assert transfer.error(COVARIANCE, LENGTH, TEST_LENGTH, distribution) == pytest.approx(2.4477986365, abs=PRINTED)


@pytest.mark.parametrize("label", transfer.LABELS)
def test_the_moments_of_a_label_by_quadrature(label, general):
    # x = root z with the first coordinate of z along the index; nodes on each side of the kink at zero.
    distribution = transfer.single_index_distribution(label, VECTOR, general, 0.3)
    points, weights = np.polynomial.legendre.leggauss(120)
    z = np.concatenate([6 * points - 6, 6 * points + 6])
    density = np.tile(weights, 2) * 6 * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    length = math.sqrt(VECTOR @ general @ VECTOR)
    image = general @ VECTOR / length  # E[x | z] = image z
    y = FUNCTIONS[label](length * z)
    product = image * np.sum(density * y * z)
    rest = general - np.outer(image, image)
    second = np.sum(density * y**2) * rest + np.outer(image, image) * np.sum(density * (y * z) ** 2) + 0.3 * general
    np.testing.assert_allclose(distribution.slope, np.linalg.solve(general, product), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(distribution.product_covariance, second - np.outer(product, product), rtol=1e-9, atol=1e-9)
    error = np.sum(density * y**2) - product @ np.linalg.solve(general, product) + 0.3
    assert distribution.minimum == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("label", transfer.LABELS)
def test_the_three_terms_are_the_risk_of_the_trained_bilinear_predictor(label, general):
    distribution = transfer.single_index_distribution(label, VECTOR, general, 0.2)
    step = np.linalg.inv(zhang2023.gamma(general, LENGTH))
    for length in (1, 6, math.inf):
        expected = nonlinear.bilinear_risk(
            step, general, distribution.slope, distribution.product_covariance, distribution.minimum, length
        )
        assert transfer.error(general, LENGTH, length, distribution) == pytest.approx(expected, rel=1e-11)


def test_linear_labels_are_a_fixed_task(general):
    distribution = transfer.single_index_distribution("linear", VECTOR, general)
    step = np.linalg.inv(zhang2023.gamma(general, LENGTH))
    expected = lsa.risk(Problem(general, np.outer(VECTOR, VECTOR), 0.0, TEST_LENGTH), step)
    assert transfer.error(general, LENGTH, TEST_LENGTH, distribution) == pytest.approx(expected, rel=1e-11)


def test_a_distribution_without_an_index_is_refused():
    with pytest.raises(InvalidValueError, match="must not be zero"):
        transfer.single_index_distribution("linear", np.zeros(3), COVARIANCE)
    with pytest.raises(InvalidValueError, match="one of linear, relu"):
        transfer.single_index_distribution("cosine", VECTOR, COVARIANCE)


def test_the_sample_size_bounds_the_risk(general):
    assert transfer.sample_size(COVARIANCE, 0.004) == 3500
    assert transfer.residual_bound(COVARIANCE, LENGTH) == pytest.approx(1.505, rel=1e-12)
    for length in (2, 10, 100):
        for accuracy in (5.0, 0.3):
            test = transfer.sample_size(general, accuracy)
            risk = zhang2023.risk(general, length, test)
            assert risk <= accuracy + transfer.residual_bound(general, length)


def test_the_isotropic_risk_is_the_general_one():
    assert transfer.isotropic_risk(3, 10, math.inf) == pytest.approx(0.2448979592, abs=PRINTED)
    for noise, other in ((0.0, 0.0), (0.5, 0.2)):
        step = lsa.optimal_preconditioner(Problem(np.eye(3), np.eye(3), noise, 10))
        expected = lsa.risk(Problem(np.eye(3), np.eye(3), other, 6), step)
        assert transfer.isotropic_risk(3, 10, 6, noise, other) == pytest.approx(expected, rel=1e-12)


def test_scaled_inputs():
    assert transfer.scaled_inputs_error(2.0, 4.25) == 153.0
    task = np.outer(VECTOR, VECTOR)
    expected = lsa.risk(Problem(1.69 * COVARIANCE, task, 0.0, math.inf), np.linalg.inv(COVARIANCE))
    assert transfer.scaled_inputs_error(1.3, 4.25) == pytest.approx(expected, rel=1e-12)
