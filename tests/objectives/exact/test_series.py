"""The exact loss on Gaussian series against Isserlis' formula written with full matrices, and against sampled prompts."""

import itertools

import jax
import numpy as np
import pytest

from icl_lab import objectives, tasks
from icl_lab.core.errors import UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights
from icl_lab.objectives.exact.series import coefficient_quadrature, quadrature_sizes, series_moments

MODEL = LinearSelfAttention(embedding="hankel", query_in_sum=False)
# Linear-process order (2,), a moving average, and AR(1) seen through windows of two values.
AUTOCOVARIANCES = {
    "ar2": (tasks.autocovariances([0.5, -0.3], 1.1, 9), 2),
    "ma2": (tasks.arma_autocovariances([], [0.0, 0.9], 1.0, 8), 1),
    "ar1 in pairs": (tasks.autocovariances([0.7], 1.0, 8), 2),
}


def literal_moments(gamma, order):
    """The moments with the n x n matrices B_a multiplied out."""
    n = len(gamma) - 1
    windows = n - order
    full = gamma[np.abs(np.subtract.outer(np.arange(n + 1), np.arange(n + 1)))]
    s, target = full[:n, :n], full[:n, n]
    matrices = []
    for j in range(order + 1):
        for k in range(j, order + 1):
            matrix = np.zeros((n, n))
            for i in range(windows):
                matrix[i + j, i + k] += 0.5 / windows
                matrix[i + k, i + j] += 0.5 / windows
            matrices.append(matrix)
    last = range(windows, n)
    gram = [
        (np.trace(a @ s) * np.trace(b @ s) + 2 * np.trace(a @ s @ b @ s)) * s[u, v]
        + 2 * np.trace(a @ s) * (s @ b @ s)[u, v]
        + 2 * np.trace(b @ s) * (s @ a @ s)[u, v]
        + 4 * (s @ a @ s @ b @ s)[u, v]
        + 4 * (s @ b @ s @ a @ s)[u, v]
        for (a, u), (b, v) in itertools.product(itertools.product(matrices, last), repeat=2)
    ]
    cross = [np.trace(a @ s) * target[u] + 2 * (s @ a @ target)[u] for a, u in itertools.product(matrices, last)]
    return np.reshape(gram, (len(cross), -1)), np.array(cross)[:, None]


@pytest.mark.parametrize("name", AUTOCOVARIANCES)
def test_moments_are_isserlis_formula_with_full_matrices(name):
    gamma, order = AUTOCOVARIANCES[name]
    moments = series_moments(gamma, order)
    gram, cross = literal_moments(gamma, order)
    np.testing.assert_allclose(moments.gram, gram, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(moments.cross, cross, rtol=1e-12, atol=1e-13)
    assert moments.variance == gamma[0]


@pytest.mark.parametrize(
    "task",
    [
        tasks.Autoregressive([0.5, -0.3], 8, 0.7),
        tasks.GaussianSeries(tasks.arma_autocovariances([0.6], [0.7], 1.0, 8), 2),
        tasks.RandomAutoregressive(1, 6, bound=0.8),
        tasks.RandomAutoregressive(2, 6, bound=0.7),
    ],
    ids=["ar2", "arma", "random ar1", "random ar2"],
)
def test_exact_loss_agrees_with_sampled_prompts(task, rng, key):
    model = LinearSelfAttention(embedding="hankel", query_in_sum=False, normaliser="none")
    exact = objectives.population(task, model)
    sampled = objectives.SampledLoss.build(task, model, key, prompts=60_000, groups=20)
    assert isinstance(exact, objectives.MomentLoss)
    assert exact.features == sampled.features
    width = task.dim + 1
    weights = LSAWeights(0.3 * rng.normal(size=(width, width)), 0.3 * rng.normal(size=(width, width)))
    assert exact.standard_error(weights) == 0.0
    assert abs(exact.risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


def test_the_quadrature_has_the_moments_of_the_distribution_of_coefficients(key):
    task = tasks.RandomAutoregressive(2, 5, bound=0.9)
    points, weights = coefficient_quadrature(task, (8, 8))
    assert np.sum(weights) == pytest.approx(1.0, rel=1e-13)
    draws = np.asarray(jax.vmap(task.sample_coefficients)(jax.random.split(key, 40_000)))
    for statistic in (lambda rho: rho[:, 0] ** 2, lambda rho: rho[:, 1], lambda rho: rho[:, 0] ** 2 * rho[:, 1]):
        values = statistic(draws)
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - weights @ statistic(points)) < 4 * error


@pytest.mark.parametrize(("order", "bound"), [(1, 0.9), (1, 0.97), (2, 0.7)])
def test_the_default_quadrature_has_converged(order, bound):
    task = tasks.RandomAutoregressive(order, 5, bound=bound)
    finer = tuple(int(1.3 * count) for count in quadrature_sizes(task))
    moments, reference = (objectives.series_loss(task, MODEL, nodes).moments for nodes in (None, finer))
    # Half of the entries vanish by the symmetry x_t -> (-1)^t x_t.
    np.testing.assert_allclose(moments.gram, reference.gram, atol=1e-12 * np.max(reference.gram))
    np.testing.assert_allclose(moments.cross, reference.cross, atol=1e-12 * np.max(reference.cross))


def test_other_problems_are_refused():
    task = tasks.Autoregressive([0.5], 5)
    for model in (LinearSelfAttention(embedding="hankel"), LinearSelfAttention(query_in_sum=False)):
        with pytest.raises(UnsupportedProblemError, match="hankel"):
            objectives.series_loss(task, model)
    with pytest.raises(UnsupportedProblemError, match="order 1 or 2"):
        objectives.series_loss(tasks.RandomAutoregressive(3, 5), MODEL)
    with pytest.raises(UnsupportedProblemError, match="below 1"):
        objectives.series_loss(tasks.RandomAutoregressive(1, 5, bound=1.0), MODEL)
