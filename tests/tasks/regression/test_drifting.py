"""A task vector that drifts: what is drawn against its correlations, the limits of a, lengths, and what is refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.tasks import DriftingRegression

RATES = np.array([0.8, 1.0, -0.5, 0.0])
NOISE = 0.7


@eqx.filter_jit
def drawn(task, count):
    return task.sample_batch(jax.random.key(0), count)


def batch(task, count=40_000):
    return jax.tree.map(np.asarray, drawn(task, count))


@functools.cache
def some():
    return batch(DriftingRegression(4, 5, RATES, NOISE))


def test_each_coordinate_is_stationary_with_its_own_correlations(agrees):
    vectors, place = some().latent, np.arange(6)
    assert agrees(vectors, np.zeros((6, 4)))
    joint = np.einsum("ntc,nsd->ntscd", vectors, vectors)
    expected = np.zeros((6, 6, 4, 4))
    for c, rate in enumerate(RATES):
        expected[:, :, c, c] = rate ** np.abs(place[:, None] - place[None, :])
    assert agrees(joint, expected)


def test_a_start_that_is_not_stationary_is_rejected(agrees):
    # Twin: innovations of variance 1 - a, not 1 - a^2, would give later vectors another variance.
    rate, place = 0.8, np.arange(4)
    variances = rate ** (2 * place) + (1 - rate) * (1 - rate ** (2 * place)) / (1 - rate**2)
    vectors = batch(DriftingRegression(1, 3, rate)).latent[:, :, 0]
    assert agrees(vectors**2, np.ones(4))
    assert not agrees(vectors**2, variances)


def test_labels_are_those_of_the_vectors_in_time_order_and_only_they_are_noisy(agrees):
    prompts = some()
    noise = prompts.labels[:, :, 0] - np.sum(prompts.inputs * prompts.latent[:, :-1], axis=2)
    assert agrees(noise, np.zeros(5))
    assert agrees(noise[:, :, None] * noise[:, None, :], NOISE**2 * np.eye(5))
    np.testing.assert_allclose(prompts.target[:, 0], np.sum(prompts.query * prompts.latent[:, -1], axis=1), rtol=0, atol=1e-13)
    everything = np.concatenate([prompts.inputs, prompts.query[:, None]], axis=1)
    assert agrees(np.einsum("ntc,ntd->ntcd", everything, everything), np.broadcast_to(np.eye(4), (6, 4, 4)))


def test_what_a_label_says_of_the_query_falls_with_its_age(agrees):
    prompts = some()
    # E y_t x_t w_{N+1}^T has a^(N + 1 - t) on its diagonal.
    evidence = np.einsum("nt,ntc,nc->ntc", prompts.labels[:, :, 0], prompts.inputs, prompts.latent[:, -1])
    assert agrees(evidence, RATES[None, :] ** np.arange(5, 0, -1)[:, None])


@pytest.mark.parametrize(("rate", "sign"), [(1.0, 1.0), (-1.0, -1.0)])
def test_without_drift_the_vector_stays_where_it_is(key, rate, sign):
    vectors = np.asarray(DriftingRegression(3, 4, rate).sample(key).latent)
    np.testing.assert_array_equal(vectors, sign ** np.arange(5)[:, None] * vectors[0])


def test_one_rate_is_the_task_of_those_correlations(agrees):
    task = DriftingRegression(2, 3, 0.6, NOISE)
    other = task.correlated()
    np.testing.assert_allclose(other.correlations[-1], [0.6**3, 0.6**2, 0.6, 1.0], rtol=1e-15)
    assert (other.dim, other.context_length, float(other.noise_std)) == (2, 3, NOISE)
    # Second moments of labels and target are fourth moments of the vectors and inputs; both tasks have their own code.
    values = [np.concatenate([p.labels[:, :, 0], p.target], axis=1) for p in (batch(task), batch(other))]
    squares = [value[:, :, None] ** 2 * value[:, None, :] ** 2 for value in values]
    difference = squares[0].mean(0) - squares[1].mean(0)
    errors = np.hypot(*(square.std(0, ddof=1) / np.sqrt(len(square)) for square in squares))
    assert np.all(np.abs(difference) <= 5 * errors)
    with pytest.raises(UnsupportedProblemError, match=r"the persistence of these is \[0.5, 1.0\]"):
        DriftingRegression(2, 3, [0.5, 1.0]).correlated()


def test_numbers_are_arguments_of_a_program(key):
    seen = []

    @eqx.filter_jit
    def draw(task):
        seen.append(task)
        return task.sample(key).latent

    drawn = [draw(DriftingRegression(2, 3, rate, noise)) for rate, noise in ((0.5, 0.1), ([0.9, 1.0], 0.2))]
    assert len(seen) == 1
    assert not np.array_equal(*drawn)
    np.testing.assert_allclose(drawn[1][:, 1], drawn[0][0, 1], rtol=0)
    traced = jax.jit(lambda rate: DriftingRegression(2, 3, rate).sample(key).latent)(jnp.asarray(0.5))
    np.testing.assert_allclose(traced, drawn[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "`dim` must be an integer >= 1; got 0"),
        ({"context_length": 0}, "`context_length` must be an integer >= 1; got 0"),
        ({"persistence": 1.01}, r"`persistence` must be in \[-1, 1\], since it is the correlation .* got \[1.01, 1.01\]"),
        ({"persistence": [0.5, -1.5]}, r"`persistence` must be in \[-1, 1\]"),
        ({"persistence": float("nan")}, r"`persistence` must be in \[-1, 1\].* got \[nan, nan\]"),
        ({"persistence": [0.1, 0.2, 0.3]}, r"one for each of the 2 coordinates; got shape \(3,\)"),
        ({"persistence": "slow"}, "`persistence` must be a number or 2 numbers; got 'slow'"),
        ({"noise_std": -1.0}, "`noise_std` must be a finite number >= 0; got -1.0"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(InvalidValueError, match=message):
        DriftingRegression(**({"dim": 2, "context_length": 3, "persistence": 0.5} | settings))
