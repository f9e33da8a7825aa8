"""Prompts of users' laws and tasks, drawn apart: distributed as by `sample`, by programs that nothing compiles again."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import analysis, estimators, objectives, tasks
from icl_lab.models import LinearSelfAttention, initializers
from icl_lab.tasks.blocks import drawn_apart, inputs, padded, prompts_in_blocks

SPECTRUM = np.array([1.5, 0.5])


class Normal(tasks.CovariateDistribution):
    """Normal inputs, whose `sample` counts how often it is traced."""

    dim: int = eqx.field(static=True)
    spectrum: jax.Array = eqx.field(converter=jnp.asarray)
    shared_covariance = False
    traced = 0

    def sample(self, key, count):
        type(self).traced += 1
        return jnp.sqrt(self.spectrum)[None, :] * jax.random.normal(key, (count, self.dim))

    @property
    def covariance(self):
        return np.diag(np.asarray(self.spectrum))

    def fourth_moment(self, matrix):
        return tasks.Gaussian(self.covariance).fourth_moment(matrix)


class OneScale(Normal):
    """Inputs whose common scale is 1 or 2 in a prompt."""

    shared_covariance = True

    def sample(self, key, count):
        scale = jnp.where(jax.random.bernoulli(key), 1.0, 2.0)
        return scale * super().sample(jax.random.fold_in(key, 1), count)

    @property
    def covariance(self):
        return 2.5 * super().covariance


class Pool(tasks.LinearRegression):
    """Regression whose task vector is one of a few."""

    pool: jax.Array

    def __init__(self, pool, **sizes):
        super().__init__(**sizes)
        self.pool = pool

    def sample_task(self, key):
        return jnp.asarray(self.pool)[jax.random.randint(key, (), 0, len(self.pool))]


def law_of_a_user(length=4, noise=0.3, law=Normal):
    return tasks.LinearRegression(2, length, task_covariance=[2.0, 1.0], noise_std=noise, covariates=law(2, SPECTRUM))


def drawn(task, key, count):
    return next(prompts_in_blocks(task, key, iter([count])))


def within(values, expected, errors=4.5):
    mean, error = np.mean(values, axis=0), np.std(values, axis=0) / np.sqrt(len(values))
    return np.all(np.abs(mean - expected) < errors * error)


def test_what_a_user_wrote_is_drawn_apart():
    assert drawn_apart(law_of_a_user())
    assert drawn_apart(Pool(np.ones((3, 2)), dim=2, context_length=4))
    assert drawn_apart(tasks.LinearRegression(2, 4, covariates=tasks.IndependentCoordinates(2, jax.random.normal, 3.0)))
    assert not drawn_apart(tasks.LinearRegression(2, 4))
    assert not drawn_apart(tasks.Autoregressive(np.array([0.5, -0.3]), 4))


@pytest.mark.parametrize("law", [Normal, OneScale])
def test_prompts_are_those_of_the_task(law, key):
    task = law_of_a_user(law=law)
    prompts = drawn(task, key, 20_000)
    assert prompts.inputs.shape == (20_000, 4, 2)
    assert prompts.labels.shape == (20_000, 4, 1)
    np.testing.assert_allclose(prompts.target[:, 0], np.sum(prompts.query * prompts.latent, axis=1), atol=1e-14)
    noise = prompts.labels - prompts.inputs @ prompts.latent[:, :, None]
    assert within(noise.reshape(len(noise), -1) ** 2, 0.09)
    assert within(noise[:, 0] * noise[:, 1], 0.0)
    assert within(prompts.latent**2, [2.0, 1.0])
    assert within(prompts.latent[1:] * prompts.latent[:-1], 0.0)
    for x in (prompts.query, prompts.inputs[:, 0], prompts.inputs[:, 3]):
        assert within(x[:, :, None] * x[:, None, :], np.asarray(task.covariance))
    lengths = prompts.inputs[:, 0, 0] ** 2 * prompts.query[:, 0] ** 2
    assert within(lengths, SPECTRUM[0] ** 2 * (8.5 if law is OneScale else 1.0))
    assert within(prompts.query[1:, 0] ** 2 * prompts.query[:-1, 0] ** 2, float(task.covariance[0, 0]) ** 2)


def test_the_sizes_of_chunks_do_not_matter(key):
    task = law_of_a_user()
    whole = drawn(task, key, 10_000)
    parts = list(prompts_in_blocks(task, key, itertools.chain([1, 7], itertools.repeat(999, 10))))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[: len(b)], b), whole, joined)


def test_prompts_longer_than_a_block(key):
    (first, second) = itertools.islice(inputs(Normal(2, SPECTRUM), key, 20_000), 2)
    assert first.shape == second.shape == (1, 20_000, 2)
    assert len(np.unique(np.concatenate([first, second], axis=1))) == 80_000


def test_lengths_that_stand_for_others():
    lengths = [padded(n) for n in range(1, 2000)]
    assert all(n <= length <= max(32, 1.5 * n) for n, length in enumerate(lengths, 1))
    assert len(set(lengths)) == 13


@pytest.mark.parametrize("query_in_sum", [False, True])
@pytest.mark.parametrize("weights", ["structured", "any"])
def test_sampled_moments_of_a_users_law_are_exact_within_errors(query_in_sum, weights, rng, key):
    task, model = law_of_a_user(), LinearSelfAttention(query_in_sum=query_in_sum, normaliser="context_length")
    start = initializers.zhang(2, 0.8)
    if weights == "any":
        start = jax.tree.map(lambda w: 0.3 * rng.normal(size=w.shape), start)
    loss = objectives.SampledLoss.build(task, model, key, prompts=40_000, groups=20)
    assert loss.prompts == 40_000
    normal = tasks.LinearRegression(2, 4, covariance=SPECTRUM, task_covariance=[2.0, 1.0], noise_std=0.3)
    exact = objectives.population(normal, model).risk(start)
    assert abs(loss.risk(start) - exact) < 4 * loss.standard_error(start)
    held_out = loss.held_out(start)
    assert abs(held_out.risk - exact) < 4 * held_out.standard_error
    assert held_out.standard_error < 0.03 * exact


def test_every_law_task_length_and_number_of_prompts_shares_its_programs(key):
    model, predictors = LinearSelfAttention(), {"ols": estimators.named("ols")}

    def use(length, spectrum, noise, prompts):
        task = tasks.LinearRegression(2, length, noise_std=noise, covariates=Normal(2, spectrum))
        objectives.SampledLoss.build(task, model, key, prompts=prompts).held_out(initializers.zhang(2, 0.1), prompts)
        analysis.sampled_risks(task, predictors, key, prompts=prompts)

    use(4, SPECTRUM, 0.1, 2_000)
    before = Normal.traced
    use(4, SPECTRUM, 0.1, 2_000)
    again = Normal.traced - before  # shapes are looked up without compiling
    for other in ((4, 2 * SPECTRUM, 0.1, 2_000), (40, SPECTRUM, 0.0, 2_000), (7, SPECTRUM, 0.2, 3_000)):
        before = Normal.traced
        use(*other)
        assert Normal.traced - before <= again + 1  # one more look, at the moments of a law that is new
