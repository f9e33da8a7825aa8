"""Arrow matrices against dense linear algebra, and the three routes of `curvature` against each other."""

import importlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from icl_lab import objectives
from icl_lab.models import LinearSelfAttention, LSAWeights
from icl_lab.models.initializers import zhang
from icl_lab.objectives.arrow import Arrow, arrow_from_products
from icl_lab.tasks import LinearRegression

curvature_module = importlib.import_module("icl_lab.objectives.curvature")


def dense(arrow: Arrow) -> np.ndarray:
    size = arrow.diagonal.shape[0]
    matrix = np.zeros((size + 1, size + 1))
    matrix[0, 0] = arrow.tip
    matrix[0, 1:] = matrix[1:, 0] = arrow.border
    matrix[1:, 1:] = np.diag(arrow.diagonal)
    return matrix


@hypothesis.given(st.integers(0, 50))
def test_arrow_solves_and_eigenvalues_equal_dense_ones(seed):
    rng = np.random.default_rng(seed)
    arrow = Arrow(np.asarray(rng.normal()), rng.normal(size=6), rng.uniform(0.5, 3.0, 6))
    matrix, right = dense(arrow), rng.normal(size=7)
    tolerance = 1e-12 * np.linalg.cond(matrix)
    np.testing.assert_allclose(arrow.solve(right), np.linalg.solve(matrix, right), rtol=tolerance, atol=tolerance)
    smallest, largest = arrow.extreme_eigenvalues()
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose([smallest, largest], values[[0, -1]], atol=1e-12 * abs(values).max())


def test_the_least_norm_solution_of_a_singular_arrow_is_the_pseudoinverse(rng):
    border, diagonal = rng.normal(size=5), rng.uniform(0.5, 3.0, 5)
    arrow = Arrow(np.asarray(np.sum(border**2 / diagonal)), border, diagonal)
    matrix = dense(arrow)
    right = matrix @ rng.normal(size=6)
    np.testing.assert_allclose(arrow.solve_singular(right), np.linalg.pinv(matrix) @ right, atol=1e-12)


def test_an_arrow_is_read_off_two_products(rng):
    arrow = Arrow(np.asarray(rng.normal()), rng.normal(size=4), rng.normal(size=4))
    read = arrow_from_products(lambda v: dense(arrow) @ v, jnp.zeros(5))
    np.testing.assert_allclose(dense(read), dense(arrow), atol=1e-15)


@pytest.fixture
def near_minimum():
    """A loss in its structured and its full form, and weights a percent away from its minimum along the flow's subspace."""
    lam = np.diag([1.5, 0.5])
    task = LinearRegression(dim=2, context_length=8, covariance=lam)
    loss = objectives.population(task, LinearSelfAttention())
    gamma = (1 + 1 / 8) * lam + np.trace(lam) / 8 * np.eye(2)
    inverse = np.linalg.inv(gamma)
    scale = np.sqrt(np.linalg.norm(inverse))
    weights = zhang(2, 1.0)
    w_kq = np.zeros((3, 3))
    w_kq[:2, :2] = inverse / scale
    w_pv = np.zeros((3, 3))
    w_pv[-1, -1] = scale
    exact = LSAWeights(w_pv, w_kq)
    moved = LSAWeights(exact.w_pv, exact.w_kq + 0.01 * np.asarray(weights.w_kq) * np.arange(3)[:, None])
    return loss, exact, moved


def test_the_newton_step_leads_back_to_the_minimum(near_minimum):
    loss, exact, moved = near_minimum
    second = objectives.curvature(loss, jax.tree.map(jnp.asarray, moved))
    back = moved.w_pv[-1, -1] + second.newton_step.w_pv[-1, -1], moved.w_kq[:2, :2] + second.newton_step.w_kq[:2, :2]
    product = exact.w_pv[-1, -1] * exact.w_kq[:2, :2]
    before = np.abs(moved.w_pv[-1, -1] * moved.w_kq[:2, :2] - product).max()
    after = np.abs(back[0] * back[1] - product).max()
    assert after < 20 * before**2  # Newton's method is quadratic
    assert second.smallest > -1e-2 * second.largest


def test_structured_and_dense_routes_agree(near_minimum):
    loss, _, moved = near_minimum
    structured, point, _ = loss.coordinates(moved)
    point = jax.tree.map(jnp.asarray, point)
    arrow = objectives.curvature(structured, point)
    flat, unravel = ravel_pytree(point)
    hessian = jax.hessian(lambda x: structured(unravel(x)))(flat)
    values = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose([arrow.smallest, arrow.largest], values[[0, -1]], atol=1e-12)
    gradient = jax.grad(lambda x: structured(unravel(x)))(flat)
    size = np.linalg.norm(np.linalg.pinv(hessian, rtol=1e-2) @ gradient)
    # The gauge eigenvalue is of the order of the gradient here, not zero, hence the percent.
    assert curvature_module.norm(arrow.newton_step) == pytest.approx(size, rel=0.02)


@pytest.mark.slow
def test_matrix_free_route_agrees_with_the_dense_one(near_minimum, monkeypatch):
    loss, _, moved = near_minimum
    moved = jax.tree.map(jnp.asarray, moved)
    full = objectives.curvature(loss, moved)
    monkeypatch.setattr(curvature_module, "DENSE_LIMIT", 1)
    free = curvature_module.curvature.__wrapped__(loss, moved)
    assert float(free.largest) == pytest.approx(float(full.largest), rel=1e-3)
    assert curvature_module.norm(free.newton_step) == pytest.approx(curvature_module.norm(full.newton_step), rel=0.1)


def test_at_zero_the_hessian_has_the_negative_eigenvalue_of_theory():
    """The saddle at the origin: eigenvalues +-|Lambda Omega Lambda|_F (regression with merged weights)."""
    spectrum = np.array([2.0, 1.0, 0.5])
    loss = objectives.population(LinearRegression(dim=3, context_length=10, covariance=spectrum), LinearSelfAttention())
    zero = LSAWeights(jnp.zeros((4, 4)), jnp.zeros((4, 4)))
    second = objectives.curvature(loss, zero)
    assert float(second.smallest) == pytest.approx(-np.linalg.norm(spectrum**2), rel=1e-12)
