"""The exact loss on random phases against literal forward passes over all phases, and against sampled prompts."""

import itertools

import jax
import numpy as np
import pytest

from icl_lab import objectives, tasks, training
from icl_lab.core.errors import InvalidValueError, MemoryBudgetError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights, PairedWeights

MODEL = LinearSelfAttention(causal=True, embedding="paired")
STARTS = {
    "gaussian": tasks.GaussianStart(0.8),
    "complex_gaussian": tasks.ComplexGaussianStart(),
    "sparse": tasks.SparseStart(1.3),
    "rademacher": tasks.RademacherStart(),
    "constant": tasks.ConstantStart(0.9),
}


def complex_normal(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def all_entries(rng, dim):
    return LSAWeights(0.3 * complex_normal(rng, 3 * dim, 3 * dim), 0.3 * complex_normal(rng, 3 * dim, 3 * dim))


def literal_loss(weights, start, lengths):
    """Half loss from the definition, averaged over a grid of phases on which every occurring power has its exact mean."""
    dim, count = len(start), 4 * max(lengths) + 5
    phases = np.exp(2j * np.pi * np.arange(count) / count)
    total = 0.0
    for transition in itertools.product(phases, repeat=dim):
        states = [np.zeros(dim), *(start * np.array(transition) ** k for k in range(max(lengths) + 2))]
        for length in lengths:
            tokens = [np.concatenate([0 * start, states[t], states[t - 1]]) for t in range(1, length + 2)]
            gram = sum(np.outer(token, token.conj()) for token in tokens) / length
            answer = (weights.w_pv @ gram @ weights.w_kq @ tokens[-1])[:dim]
            total += 0.5 * np.sum(np.abs(answer - states[length + 2]) ** 2) / count**dim
    return total


@pytest.mark.parametrize("lengths", [[1], [3], [1, 2, 3]])
def test_the_loss_is_the_average_of_literal_forward_passes_over_all_phases(rng, lengths):
    weights = all_entries(rng, 2)
    task = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary(), tasks.ConstantStart(0.9))
    loss = objectives.phase_loss(task, MODEL, lengths)
    assert float(loss(weights)) == pytest.approx(literal_loss(weights, 0.9 * np.ones(2), lengths), rel=1e-11)


@pytest.mark.parametrize("name", STARTS)
def test_exact_moments_agree_with_sampled_ones(name, rng, key):
    task = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary(), STARTS[name])
    exact = objectives.population(task, MODEL)
    sampled = objectives.SampledLoss.build(task, MODEL, key, prompts=40_000, groups=20)
    assert exact.features == sampled.features
    weights = all_entries(rng, 2)
    assert exact.standard_error(weights) == 0.0
    assert abs(exact.risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("dim", [1, 3])
def test_active_features_give_the_loss_of_the_two_blocks(name, dim, rng):
    task = tasks.LinearDynamics(dim, 5, tasks.DiagonalUnitary(), STARTS[name])
    weights = PairedWeights(complex_normal(rng, dim, dim), complex_normal(rng, dim, dim))
    active = objectives.phase_loss(task, MODEL, active=True)
    assert active.features.count == dim**3
    assert float(active(weights)) == pytest.approx(float(objectives.phase_loss(task, MODEL)(weights)), rel=1e-12)


def test_the_published_minimum_at_the_published_size():
    task = tasks.LinearDynamics(5, 98, tasks.DiagonalUnitary())
    loss = objectives.phase_loss(task, MODEL, active=True)
    start = PairedWeights(1.5 * np.eye(5) + 0j, 0.5 * np.eye(5) + 0j)
    result = training.gradient_flow(loss, start)
    assert result.verdict is training.Verdict.CONVERGED
    product = result.limit.value @ result.limit.key_query
    np.testing.assert_allclose(product, 0.191905088526 * np.eye(5), atol=1e-8)  # the flow's weight tolerance
    assert float(loss(result.limit)) == pytest.approx(103.9497599, rel=1e-9)


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("query_in_sum", [True, False])
def test_sampled_sequences_give_the_sum_over_positions(rng, key, active, query_in_sum):
    model = LinearSelfAttention(causal=True, embedding="paired", query_in_sum=query_in_sum)
    task = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary(), tasks.RademacherStart())
    sampled = objectives.SampledLoss.build(
        task, model, key, 20_000, features=objectives.phase_features(2, active), every_position=True
    )
    weights = PairedWeights(complex_normal(rng, 2, 2), complex_normal(rng, 2, 2)) if active else all_entries(rng, 2)
    exact = objectives.phase_loss(task, model, active=active)
    assert abs(exact.risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


def test_the_query_may_stay_out_of_the_sum(rng, key):
    model = LinearSelfAttention(causal=True, embedding="paired", query_in_sum=False, normaliser="none")
    task = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary(), tasks.RademacherStart())
    weights = jax.tree.map(lambda w: 0.5 * w, all_entries(rng, 2))
    sampled = objectives.SampledLoss.build(task, model, key, prompts=40_000)
    assert abs(objectives.population(task, model).risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


def test_problems_without_phases_are_refused():
    noisy = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary(), noise_std=0.1)
    with pytest.raises(UnsupportedProblemError, match="noiseless"):
        objectives.phase_loss(noisy, MODEL)
    clean = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary())
    with pytest.raises(UnsupportedProblemError, match="paired"):
        objectives.phase_loss(clean, LinearSelfAttention())
    with pytest.raises(UnsupportedProblemError, match="every position"):
        objectives.SampledLoss.build(clean, LinearSelfAttention(), jax.random.key(0), every_position=True)
    with pytest.raises(InvalidValueError, match="lengths"):
        objectives.phase_loss(clean, MODEL, [0])
    with pytest.raises(MemoryBudgetError, match="active=True"):
        objectives.phase_loss(tasks.LinearDynamics(15, 3, tasks.DiagonalUnitary()), MODEL)


def test_products_that_never_occur_count_neither_as_slow_nor_as_unresolved():
    """Sparse states: most products of three entries are zero, and their coefficients do not matter."""
    task = tasks.LinearDynamics(2, 3, tasks.DiagonalUnitary(), start=STARTS["sparse"])
    objective = objectives.phase_loss(task, MODEL)
    assert np.any(np.diagonal(objective.moments.gram) == 0)
    assert objective.rate_spread < 10
    start = PairedWeights(0.5 * np.eye(2), 1.5 * np.eye(2)).merged()
    assert training.gradient_flow(objective, start).verdict is training.Verdict.CONVERGED
