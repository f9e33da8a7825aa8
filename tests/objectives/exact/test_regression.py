"""The exact loss against tensor Gauss-Hermite quadrature (exact for these polynomials), sampling, and its structured form."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import objectives
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights, SeparateWeights, SoftmaxSelfAttention
from icl_lab.tasks import FiniteDiagonal, LinearRegression, Uniform
from tests.objectives.structured_form import check_structured_form, start_in_subspace


def random_weights(rng, dim, heads=None):
    shape = (dim + 1, dim + 1) if heads is None else (heads, dim + 1, dim + 1)
    return LSAWeights(rng.normal(size=shape), rng.normal(size=shape))


def quadrature_risk(weights, lam, om, noise_std, context_length, query_in_sum, rho):
    """E (yhat - w.x_q)^2 by a tensor rule: 3 nodes (degree 5) in each w, x, noise coordinate, 4 nodes (degree 7) in x_q."""
    dim = lam.shape[0]
    x3, w3 = np.polynomial.hermite_e.hermegauss(3)
    x4, w4 = np.polynomial.hermite_e.hermegauss(4)
    w3, w4 = w3 / w3.sum(), w4 / w4.sum()
    root_lam, root_om = np.linalg.cholesky(lam), np.linalg.cholesky(om)
    count = dim + context_length * dim + (context_length if noise_std else 0)
    nodes = np.array(list(itertools.product(range(3), repeat=count)))
    values, mass = x3[nodes], np.prod(w3[nodes], axis=1)
    task = values[:, :dim] @ root_om.T
    inputs = values[:, dim : dim + context_length * dim].reshape(-1, context_length, dim) @ root_lam.T
    labels = np.einsum("bnd,bd->bn", inputs, task)
    if noise_std:
        labels = labels + noise_std * values[:, -context_length:]
    tokens = np.concatenate([inputs, labels[:, :, None]], axis=2)
    grams = np.einsum("bni,bnj->bij", tokens, tokens)
    w_pv = weights.w_pv if weights.w_pv.ndim == 3 else weights.w_pv[None]
    w_kq = weights.w_kq if weights.w_kq.ndim == 3 else weights.w_kq[None]
    total = 0.0
    for query_nodes in itertools.product(range(4), repeat=dim):
        query = np.append(root_lam @ x4[list(query_nodes)], 0.0)
        seen = grams + (np.outer(query, query) if query_in_sum else 0.0)
        prediction = np.einsum("hi,bij,hjk,k->b", w_pv[:, -1], seen, w_kq, query) / rho
        error = (prediction - task @ query[:dim]) ** 2
        total += np.prod(w4[list(query_nodes)]) * (mass @ error)
    return total


@pytest.mark.parametrize("query_in_sum", [True, False])
@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("normaliser", ["context_length", "none"])
def test_exact_loss_equals_gauss_hermite_quadrature_at_random_weights(query_in_sum, heads, normaliser, rng):
    lam = np.array([[1.3, 0.4], [0.4, 0.7]])
    om = np.array([[0.9, -0.2], [-0.2, 1.4]])
    weights = random_weights(rng, 2, heads)
    task = LinearRegression(dim=2, context_length=2, covariance=lam, task_covariance=om, noise_std=0.6)
    model = LinearSelfAttention(query_in_sum=query_in_sum, normaliser=normaliser)
    exact = objectives.population(task, model).risk(weights)
    rho = 2.0 if normaliser == "context_length" else 1.0
    expected = quadrature_risk(weights, lam, om, 0.6, 2, query_in_sum, rho)
    assert exact == pytest.approx(expected, rel=1e-12)  # rounding of a sum of 1e5 terms


def test_dropping_the_label_label_term_would_be_seen(rng):
    """A twin that must fail: the value depends on k2 and p2 through E[c^2]."""
    task = LinearRegression(dim=2, context_length=2, noise_std=0.6)
    weights = random_weights(rng, 2)
    without = LSAWeights(weights.w_pv, np.where(np.arange(3)[:, None] == 2, 0.0, weights.w_kq))
    loss = objectives.population(task, LinearSelfAttention())
    assert abs(loss.risk(weights) - loss.risk(without)) > 1e-3 * loss.risk(weights)


def test_readout_sign_flips_the_value_matrix(rng):
    task = LinearRegression(dim=3, context_length=4, covariance=np.array([2.0, 1.0, 0.5]))
    weights = random_weights(rng, 3)
    plus = objectives.population(task, LinearSelfAttention())
    minus = objectives.population(task, LinearSelfAttention(readout_sign=-1.0))
    flipped = LSAWeights(-weights.w_pv, weights.w_kq)
    assert minus.risk(weights) == pytest.approx(plus.risk(flipped), rel=1e-14)


def test_never_reached_entries_have_zero_gradient(rng):
    task = LinearRegression(dim=3, context_length=6)
    loss = objectives.population(task, LinearSelfAttention())
    gradient = jax.grad(loss)(jax.tree.map(jnp.asarray, random_weights(rng, 3)))
    assert np.all(np.asarray(gradient.w_pv)[:-1] == 0)
    assert np.all(np.asarray(gradient.w_kq)[:, -1] == 0)
    assert np.all(np.asarray(gradient.w_pv)[-1] != 0)


def test_separate_weights_have_the_loss_of_their_product(rng):
    task = LinearRegression(dim=2, context_length=5, noise_std=0.3)
    separate = SeparateWeights(*(rng.normal(size=(2, 3, 3)) for _ in range(4)))
    loss = objectives.population(task, LinearSelfAttention(query_in_sum=False))
    assert loss.risk(separate) == pytest.approx(loss.risk(separate.merged()), rel=1e-13)


def test_random_covariance_averages_the_exact_losses(rng):
    distribution = FiniteDiagonal(values=np.array([[0.5, 2.0], [1.0, 3.0]]), probabilities=np.array([[0.5, 0.5], [0.7, 0.3]]))
    weights, model = random_weights(rng, 2), LinearSelfAttention()
    mixed = objectives.population(LinearRegression(dim=2, context_length=4, covariates=distribution), model).risk(weights)
    expected = 0.0
    for first, p in zip((0.5, 2.0), (0.5, 0.5), strict=True):
        for second, q in zip((1.0, 3.0), (0.7, 0.3), strict=True):
            task = LinearRegression(dim=2, context_length=4, covariance=np.array([first, second]))
            expected += p * q * objectives.population(task, model).risk(weights)
    assert mixed == pytest.approx(expected, rel=1e-13)


@hypothesis.given(st.floats(-3, 3).filter(lambda s: abs(s) > 0.1), st.integers(0, 5))
def test_loss_is_invariant_under_the_gauge_and_under_head_order(scale, seed):
    rng = np.random.default_rng(seed)
    task = LinearRegression(dim=2, context_length=3, covariance=np.array([1.5, 0.5]), noise_std=0.2)
    loss = objectives.population(task, LinearSelfAttention())
    weights = random_weights(rng, 2, heads=2)
    moved = LSAWeights(scale * weights.w_pv[::-1], weights.w_kq[::-1] / scale)
    assert loss.risk(moved) == pytest.approx(loss.risk(weights), rel=1e-11)


def test_loss_is_equivariant_under_rotations_of_the_inputs(rng):
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    lam, om = np.diag([2.0, 1.0, 0.5]), np.diag([1.0, 0.3, 0.6])
    weights = random_weights(rng, 3)
    big = np.eye(4)
    big[:3, :3] = rotation
    turned = LSAWeights(big @ weights.w_pv @ big.T, big @ weights.w_kq @ big.T)
    model = LinearSelfAttention()
    plain = LinearRegression(dim=3, context_length=5, covariance=lam, task_covariance=om, noise_std=0.4)
    moved = LinearRegression(
        dim=3,
        context_length=5,
        covariance=rotation @ lam @ rotation.T,
        task_covariance=rotation @ om @ rotation.T,
        noise_std=0.4,
    )
    expected = objectives.population(plain, model).risk(weights)
    assert objectives.population(moved, model).risk(turned) == pytest.approx(expected, rel=1e-12)


def test_structured_form_is_the_same_function_and_an_isometry(rng):
    lam = np.array([[1.3, 0.4], [0.4, 0.7]])
    om = np.array([[0.9, -0.2], [-0.2, 1.4]])
    task = LinearRegression(dim=2, context_length=6, covariance=lam, task_covariance=om, noise_std=0.3)
    loss = objectives.population(task, LinearSelfAttention(readout_sign=-1.0))
    check_structured_form(loss, start_in_subspace(rng, 2), 2, rounding=1e-13)


def test_weights_outside_the_subspace_have_no_structured_form(rng):
    loss = objectives.population(LinearRegression(dim=2, context_length=6), LinearSelfAttention())
    assert not isinstance(loss.coordinates(random_weights(rng, 2))[0], objectives.StructuredLoss)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        (LinearRegression(dim=2, context_length=3, covariates=Uniform(2)), LinearSelfAttention()),
        (LinearRegression(dim=2, context_length=3), LinearSelfAttention(causal=True)),
        (LinearRegression(dim=2, context_length=3), SoftmaxSelfAttention()),
    ],
)
def test_an_exact_loss_outside_its_conditions_is_refused(task, model):
    with pytest.raises(UnsupportedProblemError, match="Gaussian linear regression"):
        objectives.RegressionLoss.build(task, model)


def test_weights_of_another_width_are_refused(rng):
    loss = objectives.population(LinearRegression(dim=3, context_length=6), LinearSelfAttention())
    with pytest.raises(InvalidValueError, match="width d \\+ 1 = 4"):
        loss.risk(random_weights(rng, 2))


def test_two_layers_are_no_polynomial(rng):
    loss = objectives.RegressionLoss.build(LinearRegression(dim=2, context_length=6), LinearSelfAttention())
    with pytest.raises(UnsupportedProblemError, match="one layer"):
        loss.risk((random_weights(rng, 2), random_weights(rng, 2)))
