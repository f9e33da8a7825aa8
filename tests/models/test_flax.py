"""Learners as flax modules: round trip, the same function and gradient, and training with optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from icl_lab.core.errors import InvalidValueError, PrecisionError
from icl_lab.models import (
    MLP,
    Embedding,
    LearnerModule,
    LinearSelfAttention,
    SoftmaxSelfAttention,
    initializers,
)
from icl_lab.tasks.prompt import Prompt
from tests.models.attention_reference import random_prompt

KEY = jax.random.key(3)
WEIGHTS = {
    "merged": initializers.gaussian(KEY, 3, 0.5),
    "separate": initializers.separate_gaussian(KEY, 3, 0.5, heads=2, rank=1),
    "with token maps": (
        Embedding(np.full((4, 3), 0.5)),
        MLP(np.full((5, 4), 0.1), np.zeros(5), np.full((4, 5), 0.2), np.ones(4)),
        initializers.gaussian(KEY, 4, 0.5),
    ),
    "stack": (initializers.gaussian(KEY, 3, 0.5, heads=2), initializers.separate_gaussian(KEY, 3, 0.5)),
}


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_make_the_round_trip_bit_for_bit(weights):
    module = LearnerModule(LinearSelfAttention(), weights, param_dtype=jnp.float64)
    assert_same(module.to_weights(), weights)
    other = jax.tree.map(lambda leaf: 2 * leaf, weights)
    module.from_weights(other)
    assert_same(module.to_weights(), other)


@pytest.mark.parametrize("model", [LinearSelfAttention(), SoftmaxSelfAttention()])
def test_the_module_is_the_pure_function_with_its_gradient(rng, model):
    prompt, weights = random_prompt(rng, 4, 2, 1), WEIGHTS["stack"]
    module = LearnerModule(model, weights, param_dtype=jnp.float64)
    np.testing.assert_allclose(module(prompt), model(weights, prompt), rtol=1e-15)
    state = nnx.jit(nnx.grad(lambda m: m(prompt)[0]))(module)
    expected = jax.jit(jax.grad(lambda w: model(w, prompt)[0]))(weights)
    for layer, gradient in enumerate(expected):
        for name, value in vars(gradient).items():
            np.testing.assert_allclose(state["weights"][layer][name][...], value, rtol=1e-12, atol=1e-15)


def test_each_matrix_is_a_parameter_under_its_name():
    module = LearnerModule(LinearSelfAttention(), WEIGHTS["stack"], param_dtype=jnp.float64)
    paths = {path for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    names = [(0, ("w_pv", "w_kq")), (1, ("w_p", "w_v", "w_k", "w_q"))]
    assert paths == {("weights", layer, name) for layer, matrices in names for name in matrices}


def test_training_with_optax_lowers_the_loss_and_stays_in_float64(rng):
    inputs, tasks, queries = rng.normal(size=(32, 8, 2)), rng.normal(size=(32, 2)), rng.normal(size=(32, 2))
    prompts = [Prompt(x, (x @ w)[:, None], q, np.array([q @ w])) for x, w, q in zip(inputs, tasks, queries, strict=True)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    module = LearnerModule(LinearSelfAttention(), initializers.zhang(2, 0.3), param_dtype=jnp.float64)
    optimiser = nnx.Optimizer(module, optax.adam(3e-2), wrt=nnx.Param)

    def loss(module):
        return jnp.mean((jax.vmap(module)(batch) - batch.target) ** 2) / 2

    @nnx.jit
    def step(module, optimiser):
        value, gradient = nnx.value_and_grad(loss)(module)
        optimiser.update(module, gradient)
        return value

    # Adam's own bias correction multiplies a float by an integer, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        values = [float(step(module, optimiser)) for _ in range(60)]
    # The optimum for d = 2, N = 8 keeps about (d + 1) / (N + d + 1) = 0.27 of the loss of the zero predictor.
    assert values[-1] < 0.5 * values[0]
    trained = module.to_weights()
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(trained))


def test_weights_of_other_shapes_do_not_slip_in_by_broadcasting():
    module = LearnerModule(LinearSelfAttention(), WEIGHTS["merged"], param_dtype=jnp.float64)
    with pytest.raises(InvalidValueError, match=r"w_pv=\(3, 3\).*got LSAWeights\(w_pv=\(1, 1\)"):
        module.from_weights(initializers.gaussian(KEY, 1, 0.5))
    with pytest.raises(InvalidValueError, match="layers and shapes"):
        module.from_weights(WEIGHTS["stack"])


@pytest.mark.default_precision
def test_float64_outside_the_scope_is_refused_instead_of_cut():
    with pytest.raises(PrecisionError, match="float64"):
        LearnerModule(LinearSelfAttention(), WEIGHTS["merged"], param_dtype=jnp.float64)
    module = LearnerModule(LinearSelfAttention(), WEIGHTS["merged"], param_dtype=jnp.float32)
    assert module.to_weights().w_pv.dtype == np.float32
