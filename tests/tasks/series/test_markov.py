"""Markov chains: their transitions, their steps, and what counting says of them."""

import functools

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks import MarkovChain

COUNT = 20_000


@eqx.filter_jit
def drawn(task, count):
    return task.sample_batch(jax.random.key(0), count)


def batch(task, count=COUNT):
    return jax.tree.map(np.asarray, drawn(task, count))


@functools.cache
def some():
    return batch(MarkovChain(3, 4, 0.5))


def states(prompts):
    """(M, N + 2) the chain of each prompt, the target last."""
    one_hot = np.concatenate([prompts.inputs, prompts.query[:, None], prompts.target[:, None]], axis=1)
    np.testing.assert_array_equal(np.sort(one_hot, axis=2), np.broadcast_to([0.0, 0.0, 1.0], one_hot.shape))
    return np.argmax(one_hot, axis=2)


def test_pairs_query_and_target_are_one_chain():
    prompts = some()
    one_hot = np.eye(3)[states(prompts)]
    np.testing.assert_array_equal(prompts.inputs, one_hot[:, :-2])
    np.testing.assert_array_equal(prompts.labels, one_hot[:, 1:-1])
    np.testing.assert_array_equal(prompts.query, one_hot[:, -2])


@pytest.mark.parametrize("concentration", [0.5, 4.0])
def test_rows_of_the_transitions_are_dirichlet(concentration, agrees):
    rows = batch(MarkovChain(3, 1, concentration)).latent
    np.testing.assert_allclose(rows.sum(axis=2), 1.0, rtol=1e-13)
    assert rows.min() >= 0
    assert agrees(rows, np.full((3, 3), 1 / 3))
    # Covariance of Dirichlet(b, b, b): (I / 3 - 1 / 9) / (3 b + 1); rows are independent.
    deviations = (rows - 1 / 3).reshape(-1, 9)
    expected = np.kron(np.eye(3), (np.eye(3) / 3 - 1 / 9) / (3 * concentration + 1))
    assert agrees(deviations[:, :, None] * deviations[:, None, :], expected)


def test_steps_follow_the_transitions_and_the_start_is_uniform(agrees):
    prompts = some()
    chain, one = states(prompts), np.arange(COUNT)
    assert agrees(np.eye(3)[chain[:, 0]], np.full(3, 1 / 3))
    for t in range(5):
        surprise = np.eye(3)[chain[:, t + 1]] - prompts.latent[one, chain[:, t]]
        assert agrees(surprise, np.zeros(3))
        # What is left is also independent of where the chain has been.
        assert agrees(surprise[:, :, None] * np.eye(3)[chain[:, 0]][:, None, :], np.zeros((3, 3)))


def test_the_target_given_the_prompt_is_the_row_of_the_query(agrees):
    prompts = some()
    distribution = np.einsum("ns,nsk->nk", prompts.query, prompts.latent)
    assert agrees(prompts.target - distribution, np.zeros(3))
    # The variance that no predictor takes away is that of a one-hot draw, 1 - |p|^2.
    noise = np.sum((prompts.target - distribution) ** 2, axis=1)
    assert agrees(noise - (1 - np.sum(distribution**2, axis=1)), 0.0)


def test_counting_with_the_prior_is_the_posterior_mean(agrees):
    prompts = some()
    # The mean of the query's row given the chain is (n_ij + b) / (n_i + 3 b); a mean with other pseudo-counts is not.
    chain = states(prompts)
    steps = np.einsum("nti,ntj->nij", np.eye(3)[chain[:, :4]], np.eye(3)[chain[:, 1:5]])
    counts = steps[np.arange(COUNT), chain[:, 4]]
    for pseudo, holds in ((0.5, True), (1.0, False)):
        mean = (counts + pseudo) / (counts.sum(axis=1, keepdims=True) + 3 * pseudo)
        assert agrees((prompts.target - mean) * mean, np.zeros(3)) is holds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": 1}, "`states` must be an integer >= 2; got 1"),
        ({"context_length": 0}, "`context_length` must be an integer >= 1; got 0"),
        ({"concentration": 0.0}, "`concentration` must be a finite number > 0, because .*Dirichlet.*; got 0.0"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(InvalidValueError, match=message):
        MarkovChain(**({"states": 3, "context_length": 4} | settings))
