"""Mixers that solve: against ridge regression, recursive least squares and conjugate gradients, each written without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import estimators, mixers
from icl_lab.core.errors import InvalidValueError
from tests.mixers.sequences import K, V, draw, draw_prompt, error
from tests.models.attention_reference import shapes_in

data = pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])


def in_all_forms(mixer, *tokens, **gates):
    """Outputs of each form, "recurrent" first."""
    run = lambda *tokens: [mixer.outputs(*tokens, form=form, chunk=5, **gates) for form in mixers.FORMS]  # noqa: E731
    return jax.jit(run)(*tokens)


def ridge(inputs, labels, weights, penalty):
    """The matrix (K, V) of weighted ridge regression with a diagonal penalty."""
    adjoint = (weights[:, None] * inputs).conj().T
    return np.linalg.solve(adjoint @ inputs + np.diag(penalty), adjoint @ labels)


def recursive_least_squares(inputs, labels, penalty, kept=1.0):
    """The textbook recursion (K, V) of the inverse, by the formula of Sherman and Morrison, with a forgetting factor."""
    inverse, matrix = np.eye(K) / penalty, np.zeros((K, labels.shape[1]))
    for x, y in zip(inputs, labels, strict=True):
        gain = inverse @ x.conj() / (kept + x @ inverse @ x.conj())
        inverse = (inverse - np.outer(gain, x @ inverse)) / kept
        matrix = matrix + np.outer(gain, y - x @ matrix)
    return matrix


@data
@pytest.mark.parametrize("count", [3, 15])
def test_mesa_is_ridge_regression_with_weights_at_every_token(complex_data, count):
    prompt = draw_prompt(count, count=count, complex_data=complex_data)
    rng = np.random.default_rng(0)
    strengths, decays, penalty = rng.uniform(0.1, 1, count), rng.uniform(0.5, 1, count), rng.uniform(0.2, 2, K)
    gates = {"write_strength": strengths, "log_decay": np.log(decays)}
    queries, expected = rng.normal(size=(count, K)) + 0.0 * prompt.inputs, []
    for t in range(count):
        weights = [strengths[i] * np.prod(decays[i + 1 : t + 1]) for i in range(t + 1)]
        expected.append(queries[t] @ ridge(prompt.inputs[: t + 1], prompt.labels[: t + 1], np.array(weights), penalty))
    mesa = mixers.named("mesa", penalty=penalty, scale=1.0)
    for outputs in in_all_forms(mesa, queries, prompt.inputs, prompt.labels, **gates):
        assert error(outputs, np.array(expected)) <= 1e-10
    assert error(mesa.read(queries[-1], prompt.inputs, prompt.labels, **gates), expected[-1]) <= 1e-10


@data
@pytest.mark.parametrize(("count", "penalty"), [(4, 0.05), (24, 1.0)])
def test_mesa_the_preconditioned_delta_rule_recursive_least_squares_and_ridge_regression_are_one(complex_data, count, penalty):
    prompt = draw_prompt(count, count=count, complex_data=complex_data)
    expected = prompt.query @ ridge(prompt.inputs, prompt.labels, np.ones(count), np.full(K, penalty))
    answers = {
        "recursion": prompt.query @ recursive_least_squares(prompt.inputs, prompt.labels, penalty),
        "estimator": estimators.ridge(prompt, penalty),
    }
    queries = np.broadcast_to(prompt.query, prompt.inputs.shape)
    for name, gates in (("mesa", {"write_strength": 1.0, "log_decay": 0.0}), ("preconditioned_delta", {})):
        mixer = mixers.named(name, penalty=penalty, scale=1.0)
        answers[name] = mixers.Predictor(mixer, gates)(prompt)
        outputs = in_all_forms(mixer, queries, prompt.inputs, prompt.labels, **gates)
        answers |= {f"{name}, {form}": own[-1] for form, own in zip(mixers.FORMS, outputs, strict=True)}
    assert not {name: error(answer, expected) for name, answer in answers.items() if not error(answer, expected) <= 1e-10}


def test_the_state_of_the_preconditioned_delta_rule_is_the_regression_matrix_and_goes_on():
    prompt, more = draw_prompt(1, count=9), draw_prompt(2, count=5)
    rule = mixers.named("preconditioned_delta", penalty=0.3)
    _, state = rule.outputs_and_state(prompt.inputs, prompt.inputs, prompt.labels)
    assert error(state.matrix, ridge(prompt.inputs, prompt.labels, np.ones(9), np.full(K, 0.3))) <= 1e-10
    _, state = rule.outputs_and_state(more.inputs, more.inputs, more.labels, initial=state)
    inputs, labels = np.vstack([prompt.inputs, more.inputs]), np.vstack([prompt.labels, more.labels])
    assert error(state.matrix, ridge(inputs, labels, np.ones(14), np.full(K, 0.3))) <= 1e-10


def test_mesa_does_not_forget_its_penalty_as_the_textbook_recursion_does():
    prompt, kept = draw_prompt(3, count=12), 0.8

    def mesa(penalty):
        return mixers.predictor("mesa", penalty=penalty, scale=1.0, write_strength=1.0, log_decay=np.log(kept))(prompt)

    textbook = prompt.query @ recursive_least_squares(prompt.inputs, prompt.labels, 0.5, kept)
    assert error(mesa(0.5 * kept**12), textbook) <= 1e-10
    assert error(mesa(0.5), textbook) >= 0.1


def conjugate_gradient_steps(matrix, right, count):
    """The iterates from zero: each the minimum of the quadratic over a Krylov space, by its normal equations."""
    basis = np.linalg.qr(np.array([np.linalg.matrix_power(matrix, j) @ right for j in range(count)]).T)[0]
    return [
        basis[:, :j] @ np.linalg.solve(basis[:, :j].conj().T @ matrix @ basis[:, :j], basis[:, :j].conj().T @ right)
        for j in range(1, count + 1)
    ]


@data
def test_mesa_with_j_steps_is_the_minimum_over_j_dimensions_and_exact_with_all(complex_data):
    prompt = draw_prompt(4, count=24, complex_data=complex_data)
    gates = {"write_strength": 0.9, "log_decay": np.log(0.97)}
    weights = 0.9 * 0.97 ** np.arange(24)[::-1]
    # Products with a column: the matrix is the one of sum_i w_i k_i k_i^*.
    gram = (weights[:, None] * prompt.inputs).T @ prompt.inputs.conj() + 0.1 * np.eye(K)
    sums = (weights[:, None] * prompt.inputs).conj().T @ prompt.labels
    queries = np.broadcast_to(prompt.query, prompt.inputs.shape)
    exact, distances = sums.T @ np.linalg.solve(gram, prompt.query), []
    solutions = conjugate_gradient_steps(gram, prompt.query, K)
    for steps in (1, 3, K):
        solution = solutions[steps - 1]
        mesa = mixers.named("mesa", penalty=0.1, steps=steps, scale=1.0)
        answers = [outputs[-1] for outputs in in_all_forms(mesa, queries, prompt.inputs, prompt.labels, **gates)]
        for answer in [*answers, mesa.read(prompt.query, prompt.inputs, prompt.labels, **gates)]:
            assert error(answer, sums.T @ solution) <= 1e-10, steps
        distances.append(error(answers[0], exact))
    assert distances[-2] > 1e-6
    assert distances[-1] <= 1e-10
    # One step goes along the query: linear attention, times a number.
    one = mixers.named("mesa", penalty=0.1, steps=1, scale=1.0).read(prompt.query, prompt.inputs, prompt.labels, **gates)
    length = np.vdot(prompt.query, prompt.query).real / np.vdot(prompt.query, gram @ prompt.query).real
    linear = mixers.predictor("simple_gla", scale=0.9 * length, log_decay=np.log(0.97))(prompt)
    assert error(one, linear) <= 1e-12


def test_steps_after_the_last_one_needed_change_neither_outputs_nor_gradients():
    tokens, gates = draw(mixers.named("mesa"), 10, seed=5)

    def results(tokens):
        for steps in (30, None):
            mesa = mixers.named("mesa", steps=steps)
            outputs, pull = jax.vjp(lambda t, g, m=mesa: m.outputs(*t, chunk=4, **g), tokens, gates)
            yield outputs, pull(jnp.ones_like(outputs))

    run = jax.jit(lambda tokens: tuple(results(tokens)))
    # The first tokens need fewer steps than there are.
    assert error(*run(tokens)) <= 1e-8
    # A query of zeros needs none; there the steps have a corner, and zero for a slope.
    tokens[0][3] = 0.0
    steps, direct = run(tokens)
    assert error(steps[0], direct[0]) <= 1e-8
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(steps))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mesa", {}), ("mesa", {"steps": 2}), ("preconditioned_delta", {})],
    ids=["direct", "steps", "delta"],
)
def test_in_blocks_no_array_holds_a_matrix_for_every_token(name, parameters):
    mixer = mixers.named(name, **parameters)
    tokens, gates = draw(mixer, 200, seed=6)
    total = lambda t, g: jnp.sum(mixer.outputs(*t, chunk=8, **g))  # noqa: E731
    shapes = shapes_in(jax.make_jaxpr(jax.value_and_grad(total))(tokens, gates))
    assert max(map(np.prod, shapes)) < 200 * K * V


def test_penalties_and_steps_that_do_not_exist_are_refused():
    prompt = draw_prompt(7)
    for penalty in (0.0, -1.0, np.nan, np.array([1.0, 0.0])):
        for name in ("mesa", "preconditioned_delta"):
            with pytest.raises(InvalidValueError, match="`penalty` must be finite and > 0, because it makes the equations"):
                mixers.named(name, penalty=penalty)
    with pytest.raises(InvalidValueError, match=r"`penalty` must be one number or one a key channel, \(6,\); got shape \(5,\)"):
        mixers.predictor("preconditioned_delta", penalty=np.ones(5))(prompt)
    with pytest.raises(InvalidValueError, match="`steps` must be an integer >= 1; got 0"):
        mixers.named("mesa", steps=0)
    mesa = mixers.named("mesa")
    tokens = prompt.inputs, prompt.inputs, prompt.labels
    _, state = mesa.outputs_and_state(*tokens, write_strength=1.0, log_decay=0.0)
    with pytest.raises(InvalidValueError, match=r"`initial` must be the `Solution` of earlier tokens, .*\(6, 3\).*\(6, 1\)"):
        mesa.outputs(*tokens, write_strength=1.0, log_decay=0.0, initial=state._replace(matrix=state.matrix[:, :1]))


def test_mesa_maps_over_prompts_and_differentiates_in_its_penalty():
    prompts = [draw_prompt(seed) for seed in (8, 9)]
    batch = jax.tree.map(lambda *x: np.stack(x), *prompts)

    def answers(penalty):
        predict = mixers.predictor("mesa", penalty=penalty, scale=1.0, write_strength=1.0, log_decay=0.0)
        return jax.vmap(predict)(batch)

    assert error(answers(0.3), np.stack([estimators.ridge(prompt, 0.3) for prompt in prompts])) <= 1e-10
    difference = (answers(0.3 + 1e-6) - answers(0.3 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jacfwd(answers)(0.3), difference, rtol=1e-6, atol=1e-8)
