"""Associative recall: keys, values, and which of them is asked for."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError
from icl_lab.tasks import AssociativeRecall

both = pytest.mark.parametrize("orthonormal", [False, True])


@eqx.filter_jit
def drawn(task, count):
    return task.sample_batch(jax.random.key(0), count)


def batch(task, count=40_000):
    return jax.tree.map(np.asarray, drawn(task, count))


@both
def test_the_query_is_a_key_and_the_target_its_value(orthonormal):
    prompts = batch(AssociativeRecall(4, 3, 2, orthonormal), 200)
    one = np.arange(200)
    np.testing.assert_array_equal(prompts.query, prompts.inputs[one, prompts.latent])
    np.testing.assert_array_equal(prompts.target, prompts.labels[one, prompts.latent])
    assert set(prompts.latent) == {0, 1, 2}


@both
def test_keys_values_and_positions_have_their_distributions(orthonormal, agrees):
    prompts = batch(AssociativeRecall(4, 3, 2, orthonormal))
    gram = prompts.inputs @ np.swapaxes(prompts.inputs, 1, 2)
    np.testing.assert_allclose(np.diagonal(gram, axis1=1, axis2=2), np.ones((40_000, 3)), rtol=1e-13)
    # Uniform on the sphere: E k k^T = I / d, E k_1^4 = 3 / (d (d + 2)); of two independent keys E (k.k')^2 = 1 / d.
    assert agrees(np.einsum("nic,nid->nicd", prompts.inputs, prompts.inputs), np.broadcast_to(np.eye(4) / 4, (3, 4, 4)))
    assert agrees(prompts.inputs**4, np.full((3, 4), 3 / 24))
    assert agrees(prompts.inputs, np.zeros((3, 4)))
    overlaps = gram[:, [0, 0, 1], [1, 2, 2]]
    if orthonormal:
        np.testing.assert_allclose(overlaps, 0.0, atol=1e-14)
    else:
        assert agrees(overlaps**2, np.full(3, 1 / 4))
    values = prompts.labels.reshape(-1, 6)
    assert agrees(values, np.zeros(6))
    assert agrees(values[:, :, None] * values[:, None, :], np.eye(6))
    assert agrees(values**4, np.full(6, 3.0))
    assert agrees(prompts.latent[:, None] == np.arange(3), np.full(3, 1 / 3))


def test_an_outer_product_memory_is_exact_on_orthonormal_keys_and_errs_by_the_known_amount_on_random_ones(agrees):
    # sum_i v_i k_i.q - v_asked has the variance sum over the N - 1 others of E (k.q)^2 = (N - 1) / d a coordinate.
    for orthonormal in (True, False):
        prompts = batch(AssociativeRecall(4, 3, 2, orthonormal))
        answer = np.einsum("nim,nic,nc->nm", prompts.labels, prompts.inputs, prompts.query)
        if orthonormal:
            np.testing.assert_allclose(answer, prompts.target, atol=1e-13)
        else:
            assert agrees((answer - prompts.target) ** 2, np.full(2, 2 / 4))


def test_another_length_of_orthonormal_keys(key):
    task = AssociativeRecall(5, 3, 2, orthonormal=True)
    there = task.with_context_length(5)
    assert there.sample(key).inputs.shape == (5, 5)
    jax.tree.map(np.testing.assert_array_equal, task.sample(key), there.with_context_length(3).sample(key))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "`dim` must be an integer >= 1; got 0"),
        ({"context_length": 0}, "`context_length` must be an integer >= 1; got 0"),
        ({"label_dim": 0}, "`label_dim` must be an integer >= 1; got 0"),
        (
            {"orthonormal": True, "context_length": 5},
            "`context_length` must be at most dim = 4 .* no more of them exist; got 5",
        ),
    ],
)
def test_refused(settings, message):
    with pytest.raises(InvalidValueError, match=message):
        AssociativeRecall(**({"dim": 4, "context_length": 3} | settings))


def test_what_fits_no_memory_is_refused_before_it_is_drawn(key):
    with pytest.raises(MemoryBudgetError, match="a prompt of 1000000000 examples"):
        AssociativeRecall(2, 10**9).sample(key)
