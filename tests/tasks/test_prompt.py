"""What every task shares: pure in the key, jit and vmap safe, a pytree, float64 in the scope and float32 outside."""

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError, NonFiniteError, UnsupportedProblemError
from icl_lab.tasks import (
    AffineRegression,
    AssociativeRecall,
    Autoregressive,
    DiagonalUnitary,
    DriftingRegression,
    ExponentialDiagonal,
    FiniteDiagonal,
    GaussianSeries,
    HaarOrthogonal,
    LinearDynamics,
    LinearRegression,
    MarkovChain,
    NonlinearRegression,
    Prompt,
    RandomAutoregressive,
    ReLUNetwork,
    Rescaled,
    RotatedSpectrum,
    SineRegression,
    Uniform,
    check_finite,
)
from icl_lab.tasks.prompt import Task, add_noise, check_count, check_nonnegative

TASKS = {
    "gaussian": LinearRegression(2, 3, [[2.0, 0.5], [0.5, 1.0]], noise_std=0.5),
    "uniform": LinearRegression(2, 3, covariates=Uniform(2)),
    "finite_diagonal": LinearRegression(2, 3, covariates=FiniteDiagonal([[1.0, 2.0]] * 2, [[0.5, 0.5]] * 2)),
    "exponential": LinearRegression(2, 3, covariates=ExponentialDiagonal(2)),
    "rotated": LinearRegression(2, 3, covariates=RotatedSpectrum([[1.0], [3.0]], [[1.0], [1.0]])),
    "network": NonlinearRegression(2, 3, ReLUNetwork(2), noise_std=0.5),
    "autoregressive": Autoregressive([0.5, -0.3], 3),
    "random_autoregressive": RandomAutoregressive(2, 3),
    "unitary": LinearDynamics(2, 3, DiagonalUnitary(), noise_std=0.1),
    "haar": LinearDynamics(2, 3, HaarOrthogonal()),
    "affine": AffineRegression(LinearRegression(2, 3, noise_std=0.5), 2.0),
    "drifting": DriftingRegression(2, 3, [0.9, 1.0], noise_std=0.5),
    "recall": AssociativeRecall(2, 3, 2),
    "markov": MarkovChain(2, 3),
}


def float_dtypes(prompt):
    """A position, as recall has it for its latent, is an integer."""
    return {leaf.dtype for leaf in jax.tree.leaves(prompt) if np.issubdtype(leaf.dtype, np.inexact)}


def close(first, second):
    # One program compiled in two ways: rounding of a few products of numbers of order 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), first, second)


QUICK = ("gaussian", "unitary")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TASKS])
def test_a_compiled_batch_holds_the_prompts_of_its_keys_whatever_its_size(key, name):
    task = TASKS[name]
    batch = eqx.filter_jit(task.sample_batch)(key, 3)
    close(jax.tree.map(lambda x: x[1], batch), task.sample(jax.random.split(key, 7)[1]))
    shapes = (task.context_length, task.dim), (task.context_length, task.label_dim), (task.dim,), (task.label_dim,)
    assert tuple(x.shape[1:] for x in (batch.inputs, batch.labels, batch.query, batch.target)) == shapes
    assert not np.array_equal(batch.query[0], batch.query[1])
    check_finite(batch)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_survives_flattening(name):
    leaves, structure = jax.tree.flatten(TASKS[name])
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert eqx.tree_equal(rebuilt, TASKS[name])
    assert (rebuilt.dim, rebuilt.context_length, rebuilt.label_dim) == (2, 3, TASKS[name].label_dim)


@pytest.mark.parametrize("name", TASKS)
def test_draws_are_float64_in_the_scope(key, name):
    prompt = jax.eval_shape(lambda k: TASKS[name].sample(k), key)
    expected = np.complex128 if name == "unitary" else np.float64
    assert float_dtypes(prompt) == {np.dtype(expected)}


@pytest.mark.default_precision
@pytest.mark.parametrize("name", TASKS)
def test_draws_are_float32_outside_the_scope(name):
    prompt = jax.eval_shape(lambda k: TASKS[name].sample(k), jax.random.key(0))
    expected = np.complex64 if name == "unitary" else np.float32
    assert float_dtypes(prompt) == {np.dtype(expected)}


def test_a_prompt_that_is_not_finite_is_refused_with_place_and_count():
    labels = np.array([[1.0], [np.nan], [np.inf]])
    prompt = Prompt(np.ones((3, 2)), labels, np.ones(2), np.ones(1))
    with pytest.raises(NonFiniteError, match=r"`prompt.labels` holds 2 NaN or infinite value\(s\)"):
        check_finite(prompt)


@pytest.mark.parametrize(
    "task",
    [
        LinearRegression(3, 10**9),
        NonlinearRegression(2, 10**9, ReLUNetwork(2)),
        LinearDynamics(2, 10**9, HaarOrthogonal()),
        Autoregressive([0.5], 10**9),
    ],
)
def test_a_prompt_that_fits_no_memory_is_refused_before_it_is_drawn(key, task):
    with pytest.raises(MemoryBudgetError, match="a prompt of 1000000000 examples"):
        task.sample(key)


def test_noise_is_drawn_only_if_there_is_any(key, agrees):
    values = np.zeros((40_000, 2))
    assert add_noise(key, values, 0.0) is values
    assert agrees(np.asarray(add_noise(key, values, 2.0)) ** 2, np.full(2, 4.0))
    circular = np.asarray(add_noise(key, values.astype(complex), 2.0))
    assert agrees(np.abs(circular) ** 2, np.full(2, 4.0))
    assert agrees((circular**2).real, np.zeros(2))


def test_counts_and_scales_are_checked_by_name():
    with pytest.raises(InvalidValueError, match=r"`heads` must be an integer >= 2; got 1\. Reason\."):
        check_count(1, "heads", 2, "Reason.")
    with pytest.raises(InvalidValueError, match=r"`noise_std` must be a finite number >= 0; got \[1.0, 2.0\]"):
        check_nonnegative(np.array([1.0, 2.0]), "noise_std")
    check_count(np.int64(2), "heads", 2, "Reason.")
    check_nonnegative(np.float64(0.0), "noise_std")


@pytest.mark.parametrize("name", [*TASKS, "sine", "rescaled"])
def test_another_length_is_the_same_task_but_for_its_length(name, key):
    others = {"sine": SineRegression(3, 2.0, "published", noise_std=0.1), "rescaled": Rescaled(TASKS["gaussian"], 2.0, 0.5)}
    task = (TASKS | others)[name]
    there = task.with_context_length(5)
    assert there.sample(key).inputs.shape == (5, task.dim)
    for own, back in zip(jax.tree.leaves(task), jax.tree.leaves(there.with_context_length(3)), strict=True):
        np.testing.assert_array_equal(own, back)
    jax.tree.map(np.testing.assert_array_equal, task.sample(key), there.with_context_length(3).sample(key))
    with pytest.raises(InvalidValueError, match="`context_length` must be an integer >= 1"):
        task.with_context_length(0)


def test_a_length_that_a_task_does_not_have_is_refused(key):
    series = GaussianSeries([1.0, 0.5, 0.25, 0.125, 0.0625], 1)
    assert series.with_context_length(2).sample(key).inputs.shape == (2, 1)
    with pytest.raises(InvalidValueError, match="between 1 and 3"):
        series.with_context_length(4)

    class Fixed(Task):
        dim: int = 1
        label_dim: int = 1
        context_length: int = 2

        def sample(self, key):
            raise NotImplementedError

    with pytest.raises(UnsupportedProblemError, match="exists at its own context length 2 only"):
        Fixed().with_context_length(3)
