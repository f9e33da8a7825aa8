"""The exact loss of independent inputs against Wick sums, quadrature over literal forward passes, and sampled prompts."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from icl_lab import analysis, objectives, tasks, training
from icl_lab.analysis.evaluation import comparison
from icl_lab.core.errors import MemoryBudgetError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, constructions, initializers
from icl_lab.objectives.exact.moments import Features
from icl_lab.tasks.distributions.covariates import Gaussian, Sphere
from icl_lab.tasks.distributions.independent import IndependentCoordinates, StudentT, TwoSizes, Uniform
from icl_lab.tasks.distributions.random_covariance import ExponentialDiagonal, GaussianMixture
from icl_lab.tasks.prompt import Prompt

MODEL = LinearSelfAttention(query_in_sum=False)
DISTRIBUTIONS = {
    "uniform": lambda d: Uniform(d, half_width=1.3),
    "sphere": lambda d: Sphere(d, radius=1.7),
    "student": lambda d: StudentT(d, 30.0, scale=1.2),
    "two_sizes": lambda d: TwoSizes(d, np.linspace(1.0, 6.0, d), variance=np.linspace(0.4, 1.5, d)),
}
COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.6]])


def weights_of(key, dim, heads=None):
    return initializers.gaussian(key, dim + 1, 0.4, heads=heads)


@pytest.mark.parametrize("normaliser", ["context_length", "none"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_gaussian_inputs_give_the_loss_of_wick_sums(dim, normaliser, rng, key):
    roots = rng.normal(size=(2, dim, dim))
    covariance, of_tasks = (root @ root.T + 0.1 * np.eye(dim) for root in roots)
    task = tasks.LinearRegression(dim, 4, covariance, of_tasks, noise_std=0.6)
    model = LinearSelfAttention(query_in_sum=False, normaliser=normaliser, readout_sign=-1.0)
    weights = weights_of(key, dim, heads=2)
    expected = objectives.RegressionLoss.build(task, model).risk(weights)
    assert objectives.independent_loss(task, model).risk(weights) == pytest.approx(expected, rel=1e-12)


def literal_loss(weights, half_width, context_length, noise):
    """Half loss of prompts of one input coordinate, by Gauss rules over everything that is random."""
    points, quadrature_weights = np.polynomial.legendre.leggauss(4)
    inputs = (half_width * points, quadrature_weights / 2)
    normal, normal_masses = np.polynomial.hermite_e.hermegauss(5)
    gaussian = (normal, normal_masses / np.sum(normal_masses))
    axes = [inputs] * (context_length + 1) + [gaussian] + [gaussian] * context_length
    total = 0.0
    for nodes in itertools.product(*(list(zip(*axis, strict=True)) for axis in axes)):
        values = np.array([value for value, _ in nodes])
        x, query, w, e = np.split(values, [context_length, context_length + 1, context_length + 2])
        z = np.stack([x, w * x + noise * e], axis=1)
        answer = (weights.w_pv @ (z.T @ z / context_length) @ weights.w_kq @ np.array([query[0], 0.0]))[-1]
        total += np.prod([mass for _, mass in nodes]) * 0.5 * (answer - w[0] * query[0]) ** 2
    return total


def test_uniform_inputs_give_the_average_of_literal_forward_passes(key):
    weights = weights_of(key, 1)
    task = tasks.LinearRegression(1, 2, covariates=Uniform(1, half_width=0.8), noise_std=0.7)
    loss = objectives.independent_loss(task, MODEL)
    assert float(loss(weights)) == pytest.approx(literal_loss(weights, 0.8, 2, 0.7), rel=1e-12)


def test_two_coordinates_give_the_average_of_literal_forward_passes(key):
    """Two uniform coordinates and two examples, without noise: 3 nodes a coordinate of an example, 2 of the query."""
    weights = weights_of(key, 2)
    points, quadrature_weights = np.polynomial.legendre.leggauss(3)
    normal, normal_masses = np.polynomial.hermite_e.hermegauss(3)
    two, two_masses = np.polynomial.legendre.leggauss(2)
    axes = (
        [(points, quadrature_weights / 2)] * 4
        + [(two, two_masses / 2)] * 2
        + [(normal, normal_masses / np.sum(normal_masses))] * 2
    )
    nodes = np.array(list(itertools.product(*(axis for axis, _ in axes))))
    mass = np.prod(np.array(list(itertools.product(*(m for _, m in axes)))), axis=1)
    inputs, queries, w = nodes[:, :4].reshape(-1, 2, 2), nodes[:, 4:6], nodes[:, 6:]
    labels, targets = np.einsum("pni,pi->pn", inputs, w)[..., None], np.sum(queries * w, axis=1)[:, None]
    prompts = jax.vmap(Prompt)(inputs, labels, queries, targets)
    answers = jax.vmap(lambda prompt: MODEL(weights, prompt))(prompts)
    expected = 0.5 * mass @ np.asarray((answers - targets) ** 2)[:, 0]
    task = tasks.LinearRegression(2, 2, covariates=Uniform(2))
    assert float(objectives.independent_loss(task, MODEL)(weights)) == pytest.approx(expected, rel=1e-12)


# The coordinates of a point of the sphere are not independent, so that its loss is not known with the query in the sum.
@pytest.mark.parametrize(
    ("distribution", "query_in_sum"),
    [(name, False) for name in DISTRIBUTIONS] + [(n, True) for n in DISTRIBUTIONS if n != "sphere"],
)
@pytest.mark.parametrize("normaliser", ["context_length", "none"])
def test_sampled_moments_agree(distribution, normaliser, query_in_sum, key):
    task = tasks.LinearRegression(2, 3, task_covariance=COVARIANCE, noise_std=0.5, covariates=DISTRIBUTIONS[distribution](2))
    model = LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser, readout_sign=-1.0)
    exact = objectives.population(task, model)
    sampled = objectives.SampledLoss.build(task, model, key, prompts=40_000, groups=20)
    weights = weights_of(key, 2)
    assert exact.standard_error(weights) == 0.0
    assert abs(exact.risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("query_in_sum", [False, True])
def test_coordinates_with_the_moments_of_a_gaussian_give_the_loss_of_wick_sums(dim, query_in_sum, rng, key):
    variance, root = np.linspace(0.5, 2.0, dim), rng.normal(size=(dim, dim))
    law = IndependentCoordinates(dim, jax.random.normal, kurtosis=3.0, sixth=15.0, variance=variance)
    of_tasks = root @ root.T + 0.1 * np.eye(dim)
    model = LinearSelfAttention(query_in_sum=query_in_sum)
    gaussian = tasks.LinearRegression(dim, 4, variance, of_tasks, noise_std=0.6)
    expected = objectives.RegressionLoss.build(gaussian, model)
    loss = objectives.population(tasks.LinearRegression(dim, 4, None, of_tasks, 0.6, law), model)
    wrong = objectives.population(tasks.LinearRegression(dim, 4, None, of_tasks, 0.6, replace(law, sixth=14.0)), model)
    for seed in range(3):
        weights = weights_of(jax.random.fold_in(key, seed), dim, heads=2)
        assert loss.risk(weights) == pytest.approx(expected.risk(weights), rel=1e-12)
        # The twin: the sixth moment counts exactly where the query is in the sum.
        assert (wrong.risk(weights) == pytest.approx(expected.risk(weights), rel=1e-9)) is not query_in_sum


@pytest.mark.parametrize("query_in_sum", [False, True])
@pytest.mark.parametrize("kurtosis", [1.0, 1.8, 9.0])
def test_sampled_moments_agree_in_three_dimensions_and_at_length_one(kurtosis, query_in_sum, key):
    model = LinearSelfAttention(query_in_sum=query_in_sum)
    for dim, length, noise in ((3, 5, 0.0), (2, 1, 0.7), (1, 9, 0.2)):
        law = TwoSizes(dim, kurtosis, variance=np.linspace(0.5, 1.2, dim))
        task = tasks.LinearRegression(dim, length, noise_std=noise, covariates=law)
        exact = objectives.population(task, model)
        sampled = objectives.SampledLoss.build(task, model, key, prompts=40_000, groups=20)
        weights = weights_of(key, dim)
        assert exact.standard_error(weights) == 0.0
        assert abs(exact.risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


def test_the_population_loss_is_exact_as_far_as_the_moments_are_known():
    def loss(law, query_in_sum):
        task = tasks.LinearRegression(2, 3, covariates=law)
        return type(objectives.population(task, LinearSelfAttention(query_in_sum=query_in_sum), prompts=100)).__name__

    known = [
        (StudentT(2, 7.0), "IndependentLoss", "MomentLoss"),
        (StudentT(2, 5.0), "IndependentLoss", "SampledLoss"),
        (StudentT(2, 3.0), "SampledLoss", "SampledLoss"),
        (Sphere(2), "IndependentLoss", "SampledLoss"),
        # Independent coordinates, of inputs that share a covariance.
        (ExponentialDiagonal(2), "SampledLoss", "SampledLoss"),
        (GaussianMixture([np.eye(2), 2 * np.eye(2)], [0.5, 0.5]), "RegressionLoss", "RegressionLoss"),
    ]
    for law, without, within in known:
        assert (loss(law, False), loss(law, True)) == (without, within)


@pytest.mark.parametrize("distribution", [Gaussian(np.ones(3)), Uniform(3), Sphere(3), TwoSizes(3, 50.0)])
def test_the_features_are_all_that_do_not_vanish(distribution):
    task = tasks.LinearRegression(3, 2, covariates=distribution)
    assert objectives.independent_loss(task, MODEL).features == Features.of(task, MODEL)


def test_other_problems_are_refused():
    uniform = tasks.LinearRegression(2, 3, covariates=Uniform(2))
    with pytest.raises(UnsupportedProblemError, match="query_in_sum=False"):
        objectives.independent_loss(tasks.LinearRegression(2, 3, covariates=Sphere(2)), LinearSelfAttention())
    with pytest.raises(UnsupportedProblemError, match="query_in_sum=False"):
        objectives.independent_loss(uniform, LinearSelfAttention(query_in_sum=False, loops=2))
    shared = tasks.LinearRegression(2, 3, covariates=ExponentialDiagonal(2))
    with pytest.raises(UnsupportedProblemError, match="covariates"):
        objectives.independent_loss(shared, MODEL)
    with pytest.raises(MemoryBudgetError, match="features"):
        objectives.independent_loss(tasks.LinearRegression(40, 3), MODEL)


def test_no_coefficients_of_the_features_beat_the_best_single_step(key):
    """By the symmetry under sign flips and permutations of coordinates, the lifted minimum is one step of gradient descent."""
    task = tasks.LinearRegression(dim=2, context_length=4, covariates=Uniform(2), noise_std=0.4)
    loss = objectives.independent_loss(task, MODEL)
    step = [loss.risk(constructions.gradient_descent(MODEL, 2, 4, eta)) for eta in (0.0, 1.0, 2.0)]
    constant, curvature = step[0], (step[0] - 2 * step[1] + step[2]) / 2
    slope = step[1] - constant - curvature
    np.testing.assert_allclose(loss.unconstrained_feature_risk(), constant - slope**2 / (4 * curvature), rtol=1e-10)
    assert loss.risk(weights_of(key, 2)) > loss.unconstrained_feature_risk()
    sampled = objectives.SampledLoss.build(task, MODEL, key, 40_000, 20)
    error = sampled.standard_error(constructions.gradient_descent(MODEL, 2, 4, 1.0))
    assert abs(sampled.unconstrained_feature_risk() - loss.unconstrained_feature_risk()) < 4 * error


@pytest.mark.parametrize("query_in_sum", [True, False])
@pytest.mark.parametrize(
    ("kurtosis", "dim", "length", "noise", "variance"),
    [
        (1.0, 3, 5, 0.0, 0.7),
        (1.8, 5, 12, 0.4, [0.5, 0.7, 1.0, 1.4, 2.0]),
        (3.0, 2, 20, 0.0, 1.3),
        (9.0, 3, 7, 0.5, [0.5, 1.0, 2.0]),
        ([1.0, 9.0], 2, 1, 0.3, 1.0),
    ],
)
def test_gradient_flow_lands_on_the_closed_form(kurtosis, dim, length, noise, variance, query_in_sum):
    law, model = TwoSizes(dim, kurtosis, variance), LinearSelfAttention(query_in_sum=query_in_sum)
    task = tasks.LinearRegression(dim, length, noise_std=noise, covariates=law)
    loss = objectives.population(task, model)
    limit = training.gradient_flow(loss, initializers.zhang(dim, 0.1), weight_tolerance=1e-9).limit
    best = comparison.closed_form(task, model)
    np.testing.assert_allclose(analysis.effective_preconditioner(limit, model, length), best.preconditioner, rtol=0, atol=1e-8)
    assert loss.risk(limit) == pytest.approx(best.risk, rel=1e-10)
