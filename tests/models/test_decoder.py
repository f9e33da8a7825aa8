"""The decoder: causal, order-sensitive only through positions, and wide enough for what it is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icl_lab.core.errors import InvalidValueError
from icl_lab.models import Decoder


@pytest.fixture(scope="module")
def decoder():
    return Decoder(2, 5, width=8, layers=2, heads=2, rngs=nnx.Rngs(0))


def sequence(seed=0, count=5):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(count, 2)), jnp.float32), jnp.asarray(rng.normal(size=count), jnp.float32)


def test_an_answer_sees_earlier_examples_and_its_own_input_only(decoder):
    inputs, labels = sequence()
    by_input = jax.jacobian(lambda x: decoder(x, labels))(inputs)
    by_label = jax.jacobian(lambda y: decoder(inputs, y))(labels)
    seen = np.abs(np.asarray(by_input)).max(-1) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((5, 5), bool)))
    np.testing.assert_array_equal(np.asarray(by_label) != 0, np.tril(np.ones((5, 5), bool), -1))


def test_a_prefix_is_answered_as_the_whole(decoder):
    inputs, labels = sequence()
    # float32 sums over sequences of another length.
    np.testing.assert_allclose(decoder(inputs[:3], labels[:3]), decoder(inputs, labels)[:3], atol=1e-5)


def test_positions_make_the_order_matter(decoder):
    inputs, labels = sequence()
    order = np.array([1, 0, 2, 3, 4])
    assert np.abs(np.asarray(decoder(inputs[order], labels[order]) - decoder(inputs, labels)))[-1] > 1e-4


def test_more_examples_than_positions_are_refused(decoder):
    with pytest.raises(InvalidValueError, match="5 examples; got 6"):
        decoder(*sequence(count=6))
    with pytest.raises(InvalidValueError, match="multiple of `heads`"):
        Decoder(2, 5, width=9, heads=2, rngs=nnx.Rngs(0))
