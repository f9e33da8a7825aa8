"""Sampled moments and streamed prompts against the exact loss, and against each other on tasks with no exact loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import objectives, theory, training
from icl_lab.core.errors import InvalidValueError, MemoryBudgetError, NonFiniteError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights, SoftmaxSelfAttention
from icl_lab.models.initializers import zhang
from icl_lab.objectives import prompt_features
from icl_lab.objectives import sampled as sampled_module
from icl_lab.tasks import (
    Autoregressive,
    DiagonalUnitary,
    FiniteDiagonal,
    GaussianMixture,
    LinearDynamics,
    LinearRegression,
    Sphere,
    StudentT,
)
from tests.objectives.structured_form import check_structured_form, start_in_subspace


def random_weights(rng, width, scale=0.3):
    return LSAWeights(scale * rng.normal(size=(width, width)), scale * rng.normal(size=(width, width)))


@pytest.fixture
def task():
    return LinearRegression(dim=2, context_length=4, covariance=np.array([1.5, 0.5]), noise_std=0.3)


@pytest.mark.parametrize("query_in_sum", [True, False])
def test_sampled_loss_agrees_with_the_exact_loss_within_its_standard_error(task, query_in_sum, rng, key):
    model = LinearSelfAttention(query_in_sum=query_in_sum, readout_sign=-1.0)
    weights = random_weights(rng, 3)
    sampled = objectives.SampledLoss.build(task, model, key, prompts=40_000, groups=20)
    exact = objectives.population(task, model).risk(weights)
    error = sampled.standard_error(weights)
    assert error < 0.03 * exact
    assert abs(sampled.risk(weights) - exact) < 4 * error


def test_standard_error_falls_like_the_root_of_the_number_of_prompts(task, rng, key):
    weights, model = random_weights(rng, 3), LinearSelfAttention()
    counts = np.array([1_000, 8_000, 64_000])
    errors = [objectives.SampledLoss.build(task, model, key, int(n), groups=40).standard_error(weights) for n in counts]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)  # 40 groups know each error to 11 %


@pytest.mark.parametrize(
    "task",
    [
        LinearRegression(dim=2, context_length=4, covariates=Sphere(2, radius=1.5)),
        Autoregressive(np.array([0.5, -0.3]), context_length=6, noise_std=1.0),
    ],
    ids=["sphere", "autoregressive"],
)
def test_moments_and_prompts_give_the_same_loss_where_no_exact_one_is_known(task, rng, key):
    model, weights = LinearSelfAttention(), random_weights(rng, 3)
    sampled = objectives.population(task, model, key, prompts=40_000)
    assert isinstance(sampled, objectives.SampledLoss)
    streamed = objectives.StreamedLoss.build(task, model, jax.random.key(7), batch=40_000)
    difference = abs(sampled.risk(weights) - streamed.risk(weights))
    assert difference < 4 * np.hypot(sampled.standard_error(weights), streamed.standard_error(weights))


def test_complex_moments_and_prompts_give_the_same_loss(rng, key):
    task = LinearDynamics(dim=2, context_length=4, transition=DiagonalUnitary())
    model = LinearSelfAttention(embedding="paired", causal=True)
    width = 6
    weights = LSAWeights(
        0.2 * (rng.normal(size=(width, width)) + 1j * rng.normal(size=(width, width))),
        0.2 * (rng.normal(size=(width, width)) + 1j * rng.normal(size=(width, width))),
    )
    sampled = objectives.SampledLoss.build(task, model, key, prompts=20_000)
    streamed = objectives.StreamedLoss.build(task, model, jax.random.key(3), batch=20_000)
    difference = abs(sampled.risk(weights) - streamed.risk(weights))
    assert difference < 4 * np.hypot(sampled.standard_error(weights), streamed.standard_error(weights))
    assert streamed.standard_error(weights) < 0.1 * streamed.risk(weights)


def test_inactive_features_are_left_out():
    features = objectives.Features.of(LinearRegression(dim=5, context_length=3), LinearSelfAttention())
    assert features.count == 21 * 5  # symmetric 6 x 6 Gram times the 5 active entries of the query token


def test_streamed_prompts_are_fresh_with_a_key_and_fixed_without(task, rng, key):
    loss = objectives.StreamedLoss.build(task, SoftmaxSelfAttention(), key, batch=64)
    weights = random_weights(rng, 3)
    assert float(loss(weights)) == float(loss(weights))
    assert float(loss(weights, jax.random.key(1))) != float(loss(weights, jax.random.key(2)))


def test_chunking_changes_nothing_but_memory(task, rng, key):
    model, weights = SoftmaxSelfAttention(), random_weights(rng, 3)
    whole = objectives.StreamedLoss.build(task, model, key, batch=256, chunk=256)
    pieces = objectives.StreamedLoss.build(task, model, key, batch=256, chunk=64)
    a, b = jax.grad(whole)(weights), jax.grad(pieces)(weights)
    # The keys of a batch are laid out by (chunks, chunk), so both see the same prompts; the rest is rounding.
    np.testing.assert_allclose(a.w_pv, b.w_pv, rtol=1e-10, atol=1e-12)


def test_moments_beyond_the_memory_budget_are_refused_with_both_numbers(task, key):
    with pytest.raises(MemoryBudgetError, match=r"need .* GiB, and .* GiB are allowed"):
        objectives.SampledLoss.build(task, LinearSelfAttention(), key, prompts=100, memory_limit=1000)


def test_a_nan_in_a_prompt_is_refused(key):
    class Broken(LinearRegression):
        def sample(self, key):
            prompt = super().sample(key)
            return jax.tree.map(lambda x: x * np.nan, prompt)

    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        objectives.SampledLoss.build(Broken(dim=2, context_length=3), LinearSelfAttention(), key, prompts=100)


def test_bad_arguments_are_refused(task, key):
    with pytest.raises(UnsupportedProblemError, match="one linear attention layer"):
        objectives.SampledLoss.build(task, SoftmaxSelfAttention(), key)
    with pytest.raises(InvalidValueError, match="`groups` must be an integer >= 2"):
        objectives.SampledLoss.build(task, LinearSelfAttention(), key, groups=1)
    with pytest.raises(InvalidValueError, match="`batch` must be an integer >= 2"):
        objectives.StreamedLoss.build(task, LinearSelfAttention(), key, batch=1)


@pytest.mark.parametrize("query_in_sum", [True, False])
def test_prompts_drawn_in_pieces_have_the_distribution_of_whole_ones(monkeypatch, query_in_sum, rng, key):
    task = LinearRegression(2, 11, covariance=np.array([1.5, 0.5]), noise_std=0.3)
    model = LinearSelfAttention(query_in_sum=query_in_sum)
    # Pieces of three examples, and a rest of two.
    monkeypatch.setattr(prompt_features, "PIECE_ELEMENTS", prompt_features.PROMPTS_OF_PIECES * 3 * 3)
    for module in (prompt_features, sampled_module):
        monkeypatch.setattr(module, "drawn_in_pieces", lambda *_: True)
    sampled = objectives.SampledLoss.build(task, model, key, prompts=40_001, groups=20)
    exact = objectives.population(task, model)
    for _ in range(3):
        weights = random_weights(rng, 3)
        assert abs(sampled.risk(weights) - exact.risk(weights)) < 4 * sampled.standard_error(weights)


@pytest.mark.parametrize(
    "law",
    [
        FiniteDiagonal([[0.3, 4.0], [0.5, 3.0]], [[0.7, 0.3], [0.5, 0.5]]),
        GaussianMixture([[[1.0, 0.5], [0.5, 0.4]], [[3.0, -1.0], [-1.0, 2.0]]], [0.6, 0.4]),
    ],
)
def test_all_inputs_of_a_long_prompt_share_its_covariance(monkeypatch, law, rng, key):
    """Pieces would have a covariance each, which is another distribution of prompts."""
    task, model = LinearRegression(2, 12, covariates=law, noise_std=0.3), LinearSelfAttention()
    monkeypatch.setattr(prompt_features, "PIECE_ELEMENTS", 8)
    sampled = objectives.SampledLoss.build(task, model, key, prompts=40_000, groups=20)
    exact = objectives.RegressionLoss.build(task, model)
    for _ in range(3):
        weights = random_weights(rng, 3)
        assert abs(sampled.risk(weights) - exact.risk(weights)) < 4 * sampled.standard_error(weights)
    with pytest.raises(UnsupportedProblemError, match="cannot be drawn in pieces"):
        task.sample_examples(key, np.ones(2), 3)


def test_lengths_share_a_program_and_have_their_own_distribution(rng, key):
    model, weights = LinearSelfAttention(), random_weights(rng, 3)
    law = Sphere(2, radius=1.5)
    compiled = set()
    for length in (3, 9, 16):
        task = LinearRegression(dim=2, context_length=length, covariates=law, noise_std=0.2)
        sampled = objectives.SampledLoss.build(task, model, key, prompts=20_000)
        streamed = objectives.StreamedLoss.build(task, model, jax.random.fold_in(key, length), batch=40_000)
        error = np.hypot(sampled.standard_error(weights), streamed.standard_error(weights))
        assert abs(sampled.risk(weights) - streamed.risk(weights)) < 4 * error
        drawn, own = prompt_features.at_padded_length(task, model)
        assert int(own) == length
        compiled.add((drawn.context_length, jax.tree.structure((drawn, sampled.features))))
    assert len(compiled) == 1


def test_twins_of_opposite_labels_leave_the_subspace_invariant(rng, key):
    task = LinearRegression(dim=3, context_length=5, covariates=Sphere(3), noise_std=0.3)
    loss = objectives.SampledLoss.build(task, LinearSelfAttention(readout_sign=-1.0), key, prompts=4_000)
    full = check_structured_form(loss, start_in_subspace(rng, 3), 3, rounding=1e-12)
    np.testing.assert_allclose(full.w_kq[3, :3], 0, atol=0)


class Pool(LinearRegression):
    """One of two task vectors: labels of the opposite sign are no prompts of it."""

    def sample_task(self, key):
        return jnp.where(jax.random.bernoulli(key), jnp.array([1.0, 0.5]), jnp.array([0.2, 1.0]))


def test_a_subclass_with_tasks_of_its_own_has_no_twins(rng, key):
    task = Pool(dim=2, context_length=4)
    model, weights = LinearSelfAttention(), random_weights(rng, 3, 0.6)
    sampled = objectives.SampledLoss.build(task, model, key, prompts=40_000)
    streamed = objectives.StreamedLoss.build(task, model, jax.random.fold_in(key, 1), batch=40_000)
    error = np.hypot(sampled.standard_error(weights), streamed.standard_error(weights))
    assert abs(sampled.risk(weights) - streamed.risk(weights)) < 4 * error
    assert np.any(sampled.moments.cross[0])  # E[x_1^2 x_1q y_q], odd in w
    assert not isinstance(sampled.coordinates(zhang(2, 0.1))[0], objectives.StructuredLoss)


def test_the_risk_of_fitted_weights_is_higher_on_held_out_prompts(key):
    task = LinearRegression(dim=3, context_length=4, covariates=Sphere(3, radius=2.0))
    model = LinearSelfAttention(query_in_sum=True)
    loss = objectives.SampledLoss.build(task, model, key, prompts=100)
    limit = training.gradient_flow(loss, zhang(3, 0.1)).limit
    held_out = loss.held_out(limit, prompts=100_000)
    best = theory.lsa.optimum(task).risk
    assert loss.risk(limit) < best < held_out.risk + 4 * held_out.standard_error
    assert held_out.gap > 4 * held_out.standard_error
    independent = objectives.StreamedLoss.build(task, model, jax.random.fold_in(key, 1), batch=100_000)
    error = np.hypot(held_out.standard_error, independent.standard_error(limit))
    assert abs(held_out.risk - independent.risk(limit)) < 4 * error
    assert "above the sample's" in str(held_out)
    assert not held_out.tail


def test_heavy_tails_are_said_with_their_share(key):
    task = LinearRegression(dim=3, context_length=8, covariates=StudentT(3, 2.5))
    loss = objectives.SampledLoss.build(task, LinearSelfAttention(), key, prompts=1_000)
    assert "infinite" in loss.reason
    held_out = loss.held_out(zhang(3, 0.3))
    assert held_out.largest_share > 0.1
    assert "heavy tails" in str(held_out)
