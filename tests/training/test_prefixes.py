"""Training on prefixes: it learns, repeats itself, and its curriculum hides what it says."""

import jax
import numpy as np
import pytest
from flax import nnx

from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.models import Decoder
from icl_lab.tasks import LinearRegression, Sphere
from icl_lab.training.prefixes import Curriculum, _sequence, prefix_risk, train_decoder


def small(seed=0):
    return Decoder(1, 5, width=16, layers=1, heads=2, rngs=nnx.Rngs(seed))


def test_training_learns_from_examples_and_repeats_itself():
    # Inputs of +-1: one example tells everything.
    task, key = LinearRegression(dim=1, context_length=4, covariates=Sphere(1, 1.0)), jax.random.key(0)
    decoder, again = small(), small()
    losses = train_decoder(decoder, task, steps=400, batch=32, learning_rate=1e-2, key=key).batch_losses
    short = train_decoder(again, task, steps=60, batch=32, learning_rate=1e-2, key=key)
    np.testing.assert_array_equal(losses[:60], short.batch_losses)
    mean, error = prefix_risk(decoder, task, jax.random.key(1), 1000)
    # Without an example nothing is known, and the best error is E w^2 = 1.
    assert abs(mean[0] - 1) < 5 * error[0]
    assert np.all(mean[1:] + 4 * error[1:] < 0.2)


def test_a_hidden_coordinate_leaves_inputs_and_labels_alike():
    task = LinearRegression(dim=2, context_length=3, noise_std=0.3)
    inputs, labels, responses = _sequence(task, jax.random.key(0))
    kept, seen, fewer = _sequence(task, jax.random.key(0), np.array([True, False]))
    np.testing.assert_array_equal(kept[:, 0], inputs[:, 0])
    np.testing.assert_array_equal(kept[:, 1], 0)
    # The same noise, and the response to the coordinate that is left: float32 rounding.
    np.testing.assert_allclose(seen - fewer, labels - responses, atol=1e-6)
    prompt = task.sample(jax.random.key(0))
    np.testing.assert_allclose(fewer[:-1], prompt.inputs[:, 0] * prompt.latent[0], atol=1e-6)


@pytest.mark.slow
def test_a_curriculum_starts_with_fewer_examples():
    task, key = LinearRegression(dim=1, context_length=4), jax.random.key(0)
    whole = train_decoder(small(), task, steps=1, key=key).batch_losses
    first = train_decoder(small(), task, steps=1, key=key, curriculum=Curriculum(1, 1, 1, 10)).batch_losses
    full = train_decoder(small(), task, steps=1, key=key, curriculum=Curriculum(1, 5, 1, 10)).batch_losses
    np.testing.assert_allclose(full, whole, rtol=1e-6)
    assert abs(first - whole)[0] > 1e-3


def test_misfits_and_divergence_are_named():
    with pytest.raises(InvalidValueError, match="d = 1 and at most 5"):
        train_decoder(small(), LinearRegression(dim=2, context_length=4), steps=1, key=jax.random.key(0))
    with pytest.raises(InvalidValueError, match="at most 5"):
        prefix_risk(small(), LinearRegression(dim=1, context_length=5), jax.random.key(0))
    with pytest.raises(InvalidValueError, match="`every`"):
        Curriculum(every=0)
    with pytest.raises(NonFiniteError, match="step"):
        train_decoder(small(), LinearRegression(dim=1, context_length=4), steps=100, learning_rate=1e30, key=jax.random.key(0))
