"""Conserved quantities: no first-order change along gradient flow, by autodiff of a loss that is far from special."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import analysis
from icl_lab.models import LinearSelfAttention, LSAWeights, SeparateWeights, SoftmaxSelfAttention
from icl_lab.tasks.prompt import Prompt

LINEAR, SOFTMAX = LinearSelfAttention(), SoftmaxSelfAttention()


def random_prompt(seed, n=4, d=2):
    rng = np.random.default_rng(seed)
    return Prompt(rng.normal(size=(n, d)), rng.normal(size=(n, 1)), rng.normal(size=d), rng.normal(size=1))


def merged(seed, heads=None, width=3):
    rng = np.random.default_rng(seed)
    shape = (width, width) if heads is None else (heads, width, width)
    return LSAWeights(rng.normal(size=shape), rng.normal(size=shape))


def separate(seed, heads=None, width=3, rank=2, value_rank=4):
    rng = np.random.default_rng(seed)
    lead = () if heads is None else (heads,)
    shapes = ((width, value_rank), (value_rank, width), (rank, width), (rank, width))
    return SeparateWeights(*(rng.normal(size=lead + shape) for shape in shapes))


def descend(model, weights, step):
    """One explicit Euler step of gradient flow on the half squared error of one prompt."""
    prompt = random_prompt(0)

    def loss(w):
        return jnp.sum((model(w, prompt) - prompt.target) ** 2) / 2

    gradient = jax.grad(loss)(jax.tree.map(jnp.asarray, weights))
    return jax.tree.map(lambda w, g: np.asarray(w - step * g), weights, gradient)


def change_over_step(model, weights, step):
    before, after = analysis.invariants(weights, model), analysis.invariants(descend(model, weights, step), model)
    return {name: np.max(np.abs(after[name] - before[name])) for name in before}


CASES = {
    "merged": (LINEAR, merged(1), {"value_key_query"}),
    "merged heads": (LINEAR, merged(2, heads=2), {"value_key_query"}),
    "separate": (LINEAR, separate(3), {"projection_value", "key_query", "projection_key"}),
    "separate heads": (LINEAR, separate(4, heads=2), {"projection_value", "key_query", "projection_key"}),
    "softmax": (SOFTMAX, separate(5), {"projection_value", "key_query"}),
    "two layers": (LINEAR, (merged(6), separate(7)), None),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_an_euler_step_changes_the_invariants_at_second_order_only(case):
    model, weights, names = CASES[case]
    coarse, fine = (change_over_step(model, weights, step) for step in (1e-3, 1e-4))
    if names is not None:
        assert set(coarse) == names
    else:
        layer = {"projection_value", "key_query", "projection_key"}
        assert set(coarse) == {"layer 0 value_key_query"} | {f"layer 1 {name}" for name in layer}
    for name in coarse:
        # A conserved quantity, quadratic in the weights, changes by step^2 times a number; any other one by step.
        np.testing.assert_allclose(coarse[name] / fine[name], 100.0, rtol=1e-3, err_msg=name)


def test_softmax_does_not_conserve_the_scale_between_value_and_key_query():
    weights = separate(5)
    moved = descend(SOFTMAX, weights, 1e-6)
    before = analysis.invariants(weights, LINEAR)["projection_key"]
    rate = (analysis.invariants(moved, LINEAR)["projection_key"] - before) / 1e-6
    assert abs(rate) > 1e-3
    assert analysis.invariants(merged(1), SOFTMAX) == {}


def test_invariants_by_hand_for_one_head():
    weights = LSAWeights(np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[1.0, 1.0], [2.0, 0.0]]))
    np.testing.assert_allclose(analysis.invariants(weights)["value_key_query"], 14.0 - 6.0)
    parts = SeparateWeights(np.array([[1.0], [2.0]]), np.array([[3.0, 0.0]]), np.array([[1.0, 1.0]]), np.array([[2.0, 0.0]]))
    values = analysis.invariants(parts)
    np.testing.assert_allclose(values["projection_value"], [[5.0 - 9.0]])
    np.testing.assert_allclose(values["key_query"], [[2.0 - 4.0]])
    np.testing.assert_allclose(values["projection_key"], 5.0 - 2.0)


def test_complex_gradient_flow_conserves_the_conjugated_quantities():
    rng = np.random.default_rng(8)
    weights = LSAWeights(*(rng.normal(size=(2, 3, 3)) + 1j * rng.normal(size=(2, 3, 3)) for _ in range(2)))
    prompt = random_prompt(1)

    def loss(w):
        prediction = LINEAR(w, prompt)
        return jnp.sum(jnp.abs(prediction - (prompt.target + 1j)) ** 2) / 2

    gradient = jax.tree.map(jnp.conj, jax.grad(loss)(jax.tree.map(jnp.asarray, weights)))
    before = analysis.invariants(weights)["value_key_query"]
    changes = []
    for step in (1e-3, 1e-4):
        moved = jax.tree.map(lambda w, g, step=step: np.asarray(w - step * g), weights, gradient)
        changes.append(np.linalg.norm(analysis.invariants(moved)["value_key_query"] - before))
    np.testing.assert_allclose(changes[0] / changes[1], 100.0, rtol=1e-3)


def test_drift_is_the_norm_of_the_change_since_the_start():
    path = [merged(9), merged(9), LSAWeights(2.0 * merged(9).w_pv, merged(9).w_kq)]
    stacked = jax.tree.map(lambda *w: np.stack(w), *path)
    expected = 3.0 * np.sum(merged(9).w_pv ** 2)
    np.testing.assert_allclose(analysis.drift(stacked)["value_key_query"], [0.0, 0.0, expected], rtol=1e-13)


def test_drift_sees_heads_and_layers_of_a_trajectory():
    first, last = (merged(1, heads=2), separate(2)), (merged(3, heads=2), separate(4))
    drift = analysis.drift(jax.tree.map(lambda *w: np.stack(w), first, last))
    change = analysis.invariants(last)["layer 0 value_key_query"] - analysis.invariants(first)["layer 0 value_key_query"]
    assert change.shape == (2, 2)
    np.testing.assert_allclose(drift["layer 0 value_key_query"], [0.0, np.linalg.norm(change)], rtol=1e-13)
    assert set(drift) == set(analysis.invariants(first))


def test_the_gauge_moves_the_balance_of_value_and_key_query_and_no_prediction():
    weights = merged(10)
    moved = LSAWeights(2.0 * weights.w_pv, weights.w_kq / 2.0)
    prompt = random_prompt(2)
    np.testing.assert_allclose(LINEAR(moved, prompt), LINEAR(weights, prompt), rtol=1e-12)
    assert not np.isclose(analysis.invariants(moved)["value_key_query"], analysis.invariants(weights)["value_key_query"])
    assert eqx.tree_equal(jax.tree.map(np.shape, moved), jax.tree.map(np.shape, weights))
