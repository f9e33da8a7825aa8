"""Many starts of one optimiser at once: each ends where it would end alone, and one that diverges harms no other."""

import jax
import numpy as np
import optax
import pytest

from icl_lab import models, objectives, tasks, training
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import initializers

TASK = tasks.LinearRegression(2, 5)
MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
OBJECTIVE = objectives.StreamedLoss.build(TASK, MODEL, jax.random.key(0), 64)


def starts(count):
    each = [initializers.gaussian(jax.random.key(seed), 3, 0.1) for seed in range(count)]
    return jax.tree.map(lambda *w: np.stack(w), *each)


def test_every_start_ends_where_it_ends_alone():
    optimiser, key, steps = optax.adam(0.01), jax.random.key(3), 300
    ends = training.descents(OBJECTIVE, starts(3), optimiser, steps, key=key)
    assert ends.batch_losses.shape == (3, steps)
    for seed in range(3):
        alone = training.descend(OBJECTIVE, initializers.gaussian(jax.random.key(seed), 3, 0.1), optimiser, steps, key=key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ends.limit(seed), alone.limit)
        assert ends.batch_losses[seed, 0] == pytest.approx(alone.evidence.initial_loss, rel=1e-12)
    assert np.all(ends.batch_losses[:, -50:].mean(axis=1) < 0.9 * ends.batch_losses[:, :1].mean(axis=1))


def test_a_start_that_diverges_harms_no_other():
    both = starts(2)
    both = jax.tree.map(lambda w: w * np.array([1.0, 1e3])[:, None, None], both)
    ends = training.descents(OBJECTIVE, both, optax.sgd(0.05), 40, key=jax.random.key(1))
    assert np.all(np.isfinite(ends.batch_losses[0]))
    assert not np.isfinite(ends.batch_losses[1, -1])


def test_weights_keep_their_precision():
    single = jax.tree.map(lambda w: w.astype(np.float32), starts(2))
    ends = training.descents(OBJECTIVE, single, optax.adam(0.01), 2, key=jax.random.key(1))
    assert all(w.dtype == np.float32 for w in jax.tree.leaves(ends.limits))


def test_misuse_is_refused():
    with pytest.raises(InvalidValueError, match="`steps`"):
        training.descents(OBJECTIVE, starts(2), optax.sgd(0.1), 0)
    uneven = (starts(2), starts(3))
    with pytest.raises(InvalidValueError, match="one leading axis"):
        training.descents(OBJECTIVE, uneven, optax.sgd(0.1), 1)
