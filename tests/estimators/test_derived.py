"""Estimators made of a path or of a matrix: what they compute, what they are called, and what they say of themselves."""

import inspect
import pickle

import numpy as np
import pytest

from icl_lab import estimators
from icl_lab.core.errors import InvalidValueError
from icl_lab.estimators import names
from icl_lab.estimators.derived import end_of, prediction_of
from icl_lab.tasks.prompt import Prompt


def scaled_sums_path(prompt: Prompt, scale: float = 1.0):
    """The sums of y_i x_i^T.

    No step.

    Args:
      prompt: one prompt.
      scale: c.

    Returns:
      (N, k, d).

    Source: none.

    Examples:
      They are sums:

      >>> scaled_sums_path(prompt)
    """
    return scale * np.cumsum(prompt.labels[:, :, None] * prompt.inputs[:, None, :], axis=0)


@pytest.fixture
def prompt(rng):
    inputs, labels, query = rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), rng.normal(size=3)
    return Prompt(inputs=inputs, labels=labels, query=query, target=np.zeros(2))


def test_the_end_of_a_path_and_its_prediction(prompt, monkeypatch):
    monkeypatch.setattr(names, "ESTIMATORS", known := {})
    weights = end_of(scaled_sums_path, "The sum.")
    predicted = prediction_of(weights, "The answer.")
    matrix = 2.0 * prompt.labels.T @ prompt.inputs
    np.testing.assert_allclose(weights(prompt, 2.0), matrix, rtol=1e-14)
    np.testing.assert_allclose(predicted(prompt, scale=2.0), matrix @ prompt.query, rtol=1e-14)
    assert known == {"scaled_sums": predicted}
    assert (weights.__name__, predicted.__name__) == ("scaled_sums_weights", "scaled_sums")
    arguments, examples = (
        "Args:\n  prompt: one prompt.\n  scale: c.",
        "Examples:\n  They are sums:\n\n  >>> scaled_sums_path(prompt)",
    )
    rest = f"{arguments}\n\nSource: none.\n\n{examples}"
    assert (weights.__doc__, predicted.__doc__) == (f"The sum.\n\n{rest}", f"The answer.\n\n{rest}")


@pytest.mark.parametrize("name", sorted(estimators.ESTIMATORS))
def test_an_estimator_takes_the_arguments_of_its_matrix_and_is_found_where_it_is_made(name):
    predicted = estimators.ESTIMATORS[name]
    assert predicted is getattr(estimators, name) is pickle.loads(pickle.dumps(predicted))
    assert predicted.__doc__ is not None
    signature = inspect.signature(predicted)
    assert str(signature.return_annotation) != str(inspect.signature(estimators.ols_weights).return_annotation)
    weights = getattr(estimators, f"{name}_weights", None)
    if weights is not None and name != "ridge":  # whose matrix has two ways to be found
        assert signature.parameters == inspect.signature(weights).parameters
        assert "Args:\n" in predicted.__doc__
        assert "Returns:" not in predicted.__doc__


def test_a_wrong_argument_is_refused_by_all_three(prompt):
    for function in (estimators.momentum_sgd_path, estimators.momentum_sgd_weights, estimators.momentum_sgd):
        with pytest.raises(InvalidValueError, match="`momentum` must be in"):
            function(prompt, 0.1, 1.5)
