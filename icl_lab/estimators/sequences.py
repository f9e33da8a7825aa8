"""Predictors of the next value of a sequence, and the zero predictor.

A sequence is a prompt: inputs are lag windows, oldest value first, and the label is the value that follows. An AR(p)
prompt holds the series inputs[0], labels[0], ..., labels[N - 1] of N + p values, the last p of which are the query. The
prompt of a Markov chain has its states as one-hot vectors: inputs the states before each transition, labels those after it,
the query the last state.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array
from icl_lab.estimators.derived import prediction_of
from icl_lab.estimators.examples import examples
from icl_lab.estimators.names import estimator
from icl_lab.tasks.prompt import Prompt


@estimator
def zero(prompt: Prompt) -> Inexact[Array, "k"]:
    """The prediction zero, whose risk is the second moment of the target."""
    _, labels, _ = examples(prompt)
    return jnp.zeros_like(labels[0])


@estimator
def last_value(prompt: Prompt) -> Inexact[Array, "k"]:
    """The last label: for a sequence, the latest value seen (persistence)."""
    _, labels, _ = examples(prompt)
    return labels[-1]


def yule_walker_weights(prompt: Prompt) -> Inexact[Array, "1 p"]:
    r"""The coefficients that solve the Yule-Walker equations of the prompt's series.

    .. math:: \sum_{j=1}^p \phi_j c_{i-j} = c_i, \quad i = 1..p, \qquad
              c_h = \frac1n \sum_{t=h+1}^{n} x_t\, \bar x_{t-h}, \quad c_{-h} = \bar c_h ,

    n = N + p values of a series of mean zero. Dividing by n at every lag (the biased autocovariances) makes the matrix
    positive definite and the fitted recursion stable. The order is the length p of the lag windows.

    Args:
      prompt: an AR(p) prompt of a scalar series: inputs (N, p), labels (N, 1).

    Returns:
      (1, p), :math:`(\phi_p, \dots, \phi_1)`, the order of the lags in a window.

    Raises:
      InvalidValueError: labels of dimension above one, or inputs that are no lag windows of one series.
      NonFiniteError: a NaN or an infinity in the prompt.
    """
    inputs, labels, query = examples(prompt)
    if labels.shape[1] != 1:
        raise InvalidValueError(
            f"Yule-Walker needs lag windows of a scalar series, with labels (N, 1); got labels of shape {labels.shape}."
        )
    if not is_traced(inputs):
        _check_lag_windows(np.asarray(inputs), np.asarray(labels), np.asarray(query))
    series = jnp.concatenate([inputs[0], labels[:, 0]])
    order, length = inputs.shape[1], series.shape[0]
    autocovariances = jnp.stack([series[h:] @ series[: length - h].conj() for h in range(order + 1)]) / length
    lags = np.arange(order)[:, None] - np.arange(order)[None, :]
    toeplitz = jnp.where(lags >= 0, autocovariances[abs(lags)], autocovariances[abs(lags)].conj())
    return cho_solve(cho_factor(toeplitz, lower=True), autocovariances[1:])[None, ::-1]


yule_walker = prediction_of(
    yule_walker_weights, "The next value (1,) of the prompt's scalar series, by the Yule-Walker equations."
)


def dirichlet_posterior_weights(prompt: Prompt, concentration: float | Float[Array, ""]) -> Inexact[Array, "S S"]:
    r"""The posterior mean of a Markov chain's transition probabilities, from the transitions of a prompt.

    .. math:: P_{ba} = \frac{n_{ab} + c}{n_a + S c}

    n_ab counts the transitions from state a to b, and n_a those from a. Column a of the prior is a symmetric Dirichlet
    distribution; c = 1 is the uniform one.

    Args:
      prompt: the prompt of a chain of S states: inputs and labels (N, S) and query (S,), all one-hot.
      concentration: c > 0.

    Returns:
      (S, S), each column a distribution over the next state.

    Raises:
      InvalidValueError: rows that are not one-hot, labels of another number of states, or a concentration that is not positive
        and finite.
      NonFiniteError: a NaN or an infinity in the prompt.

    Source: the add-constant estimator of Bondaschi et al., arXiv 2502.10178, a conjugate posterior.
    """
    inputs, labels, query = examples(prompt)
    if not is_traced(concentration) and not (np.isfinite(concentration) and concentration > 0):
        raise InvalidValueError(f"`concentration` must be a finite number > 0; got {concentration!r}.")
    states = inputs.shape[1]
    if labels.shape[1] != states:
        raise InvalidValueError(f"a chain has as many states before a transition as after it; got {states}, {labels.shape[1]}.")
    if not is_traced(inputs):
        for rows in (inputs, labels, query[None, :]):
            if not np.all((np.asarray(rows) == 0) | (np.asarray(rows) == 1)) or not np.all(np.sum(rows, axis=1) == 1):
                raise InvalidValueError("the states of a chain must be one-hot vectors, a single 1 and else 0; these are not.")
    counts = labels.T @ inputs + jnp.asarray(concentration, inputs.dtype)
    return counts / jnp.sum(counts, axis=0, keepdims=True)


dirichlet_posterior = prediction_of(
    dirichlet_posterior_weights, "The posterior mean (S,) of the probabilities of a chain's next state."
)


def _check_lag_windows(inputs: np.ndarray, labels: np.ndarray, query: np.ndarray) -> None:
    windows = np.concatenate([inputs, query[None, :]])
    if not (np.array_equal(windows[1:, :-1], windows[:-1, 1:]) and np.array_equal(windows[1:, -1], labels[:, 0])):
        raise InvalidValueError(
            "Yule-Walker needs consecutive lag windows of one series, oldest value first, each label being the last "
            "entry of the next window; this prompt's inputs are not. Use `ols` or `ridge` for regression prompts."
        )
