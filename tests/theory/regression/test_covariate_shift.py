"""The exact lines of the transformer experiment."""

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.regression.covariate_shift import risk_per_coordinate


def test_known_values():
    # d = 20, N = 40: shrinkage 40/145 and 40/61, worked out by hand from the moments of the exponential distribution.
    random, fixed = 40 / 145, 40 / 61
    np.testing.assert_allclose(risk_per_coordinate("random", "random", 1.0, 20, 40, 40), 1 - 2 * random, rtol=1e-12)
    np.testing.assert_allclose(risk_per_coordinate("fixed", "fixed", 1.0, 20, 40, 40), 1 - fixed, rtol=1e-12)
    np.testing.assert_allclose(risk_per_coordinate("random", "fixed", 1.0, 20, 40, 40), 0.5643281807, rtol=1e-9)
    np.testing.assert_allclose(risk_per_coordinate("fixed", "random", 1.0, 20, 40, 40), 1.4944907283, rtol=1e-9)


@pytest.mark.parametrize(("trained", "scale", "expected"), [("random", 4.0, 76 / 3), ("fixed", 9.0, 4059.0)])
def test_the_limit_of_long_contexts(trained, scale, expected):
    huge = 10**9
    np.testing.assert_allclose(risk_per_coordinate(trained, "random", scale, 3, huge, huge), expected, rtol=1e-6)


def test_a_simulation_agrees(rng):
    step, dim, length, scale = 6 / (3 * 6 + 2 + 5), 2, 4, 1.7
    spectra = rng.exponential(scale, (200_000, 1, dim))
    inputs = rng.normal(size=(200_000, length + 1, dim)) * np.sqrt(spectra)
    tasks = rng.normal(size=(200_000, dim))
    labels = np.einsum("pnd,pd->pn", inputs, tasks)
    answers = step * np.einsum("pn,pnd,pd->p", labels[:, :-1], inputs[:, :-1], inputs[:, -1]) / length
    errors = (answers - labels[:, -1]) ** 2 / dim
    expected = risk_per_coordinate("random", "random", scale, dim, 6, length)
    assert abs(errors.mean() - expected) < 4 * errors.std() / np.sqrt(len(errors))


def test_an_unknown_distribution_is_refused():
    with pytest.raises(InvalidValueError, match="'uniform'"):
        risk_per_coordinate("uniform", "fixed", 1.0, 2, 3, 3)
