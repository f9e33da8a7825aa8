"""The best step on nonlinear responses: tabulated values and brute force."""

import numpy as np
import pytest

from icl_lab.tasks import Linear, Monomial, RandomCosine, ReLUNetwork, Sign, SingleIndex
from icl_lab.theory.regression import lsa, mahankali2023, nonlinear
from icl_lab.theory.regression.problem import Problem


@pytest.mark.parametrize(
    ("response", "eta", "risk"),
    [
        (Linear(), 0.0975609756, 1.243902),
        (ReLUNetwork(4), 0.0655737705, 4.819672),
        (SingleIndex(Sign()), 0.0918232648, 0.649261),
        (SingleIndex(Monomial(3)), 0.0497925311, 12.311203),
        (RandomCosine(), 0.0352327473, 0.479658),
        (SingleIndex(Monomial(2), random_sign=True), 0.0, 3.0),
    ],
)
def test_values_of_the_families(response, eta, risk):
    moments = response.moments(3)
    assert nonlinear.step_size(moments, 3, 6, 0.25) == pytest.approx(eta, abs=1e-10)
    assert nonlinear.minimum_risk(moments, 3, 6, 0.25) == pytest.approx(risk, abs=1e-6)


def test_linear_responses_are_theorem_one():
    moments = Linear().moments(4)
    assert nonlinear.step_size(moments, 4, 7, 0.3) == pytest.approx(mahankali2023.step_size(4, 7, 0.3), rel=1e-14)
    assert nonlinear.minimum_risk(moments, 4, 7, 0.3) == pytest.approx(mahankali2023.minimum_risk(4, 7, 0.3), rel=1e-13)


def test_the_network_simplifies():
    for width in (1, 3, 8):
        general = nonlinear.step_size(ReLUNetwork(width).moments(5), 5, 9, 0.7)
        assert nonlinear.network_step_size(5, 9, 0.7, width) == pytest.approx(general, rel=1e-14)


def test_linear_labels_of_one_task_agree_with_the_shifted_risk(rng):
    lam, w, step = np.array([[1.2, 0.3], [0.3, 0.7]]), np.array([0.5, -2.0]), rng.normal(size=(2, 2))
    image = lam @ w
    spread = (w @ image + 0.4) * lam + np.outer(image, image)
    expected = lsa.risk(Problem(lam, np.outer(w, w), 0.4, 5), step)
    assert nonlinear.bilinear_risk(step, lam, w, spread, 0.0, 5) == pytest.approx(expected, rel=1e-13)


def test_the_distribution_of_rectified_labels(rng):
    lam, w = np.array([[1.2, 0.3], [0.3, 0.7]]), np.array([0.5, -2.0])
    x = rng.standard_normal((400_000, 2)) @ np.linalg.cholesky(lam).T
    y = np.maximum(x @ w, 0.0)
    noisy = y + 0.5 * rng.standard_normal(len(y))
    best, spread, error = nonlinear.rectified_distribution(lam, w, 0.25)
    np.testing.assert_allclose(np.cov((x * noisy[:, None]).T), spread, rtol=0.03)
    assert np.mean((x @ best - y) ** 2) == pytest.approx(error, rel=0.02)
    np.testing.assert_allclose(np.mean(x * y[:, None], axis=0), lam @ best, rtol=0.02, atol=0.01)
