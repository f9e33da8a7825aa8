"""GD++, kernels, centred inputs, weight decay and momentum against linear algebra and printed values."""

import numpy as np
import pytest

from icl_lab.theory.descent import descent_variants, vonoswald2022

ETAS, GAMMAS = np.array([0.4, 0.7, 0.3]), np.array([0.02, 0.05, 0.01])


def test_gdpp_without_curvature_is_gradient_descent(rng):
    x, y, query, start = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), rng.normal(size=3), rng.normal(size=(2, 3))
    inputs, slots = descent_variants.gdpp_tokens(start, x, y, query, ETAS, np.zeros(3))
    weights = vonoswald2022.descent_iterates(start, x, y, ETAS)[-1]
    np.testing.assert_array_equal(inputs, np.vstack([x, query[None]]))
    np.testing.assert_allclose(-slots[-1], weights @ query, rtol=1e-12)
    np.testing.assert_allclose(slots[:-1], y - x @ (weights - start).T, rtol=1e-12)


def test_gdpp_reads_the_tokens_before_the_layer():
    # One example in one dimension: x = 2, y = 3, x_q = 5, W_0 = 0, eta = 0.1, gamma = 0.05.
    inputs, slots = descent_variants.gdpp_tokens(
        np.zeros((1, 1)), np.array([[2.0]]), np.array([[3.0]]), np.array([5.0]), np.array([0.1]), np.array([0.05])
    )
    np.testing.assert_allclose(inputs[:, 0], [2 * (1 - 0.05 * 4), 5 * (1 - 0.05 * 4)], rtol=1e-14)
    np.testing.assert_allclose(slots[:, 0], [3 - 0.1 * 3 * 2 * 2, -0.1 * 3 * 2 * 5], rtol=1e-14)


def test_gdpp_is_the_polynomials(rng):
    x, w, query = rng.normal(size=(6, 3)), rng.normal(size=3), rng.normal(size=3)
    inputs, slots = descent_variants.gdpp_tokens(np.zeros((1, 3)), x, (x @ w)[:, None], query, ETAS, GAMMAS)
    values, vectors = np.linalg.eigh(x.T @ x)
    p, rho = descent_variants.gdpp_polynomials(values, ETAS, GAMMAS, 6)
    np.testing.assert_allclose(inputs[-1], vectors * p[None, :] @ vectors.T @ query, rtol=1e-12)
    np.testing.assert_allclose(slots[:-1, 0], x @ (vectors * rho[None, :]) @ vectors.T @ w, rtol=1e-12)
    np.testing.assert_allclose(-slots[-1, 0], w @ (query - vectors * rho[None, :] @ vectors.T @ query), rtol=1e-12)


@pytest.mark.parametrize(("layers", "degree"), [(1, 1), (2, 4), (3, 13), (4, 40), (5, 121)])
def test_the_degree_of_gdpp(layers, degree):
    assert descent_variants.gdpp_degree(layers) == degree
    # The polynomial itself, with rational coefficients one.
    s, p, rho = np.polynomial.Polynomial([0, 1]), np.polynomial.Polynomial([1]), np.polynomial.Polynomial([1])
    for _ in range(layers):
        rho, p = rho * (1 - s * p**2), p * (1 - s * p**2)
    assert rho.degree() == degree


def test_the_map_of_eigenvalues(rng):
    gamma = 0.3
    place, height = descent_variants.gdpp_peak(gamma)
    grid = np.linspace(0, 1 / gamma, 100_001)
    values = descent_variants.gdpp_eigenvalue(grid, gamma)
    assert grid[np.argmax(values)] == pytest.approx(place, abs=1e-4)
    assert np.max(values) == pytest.approx(height, rel=1e-8)
    assert np.min(values) == values[0] == pytest.approx(values[-1], abs=1e-15)
    x = rng.normal(size=(5, 3))
    moved = x - gamma * x @ (x.T @ x)
    expected = np.sort(descent_variants.gdpp_eigenvalue(np.linalg.eigvalsh(x.T @ x), gamma))
    np.testing.assert_allclose(np.linalg.eigvalsh(moved.T @ moved), expected, rtol=1e-10)


@pytest.mark.parametrize(("gamma", "median"), [(0.0, 10.58), (0.05, 6.55), (0.099, 3.78), (0.12, 3.17)])
def test_the_published_condition_numbers(gamma, median):
    contexts = np.random.default_rng(1).uniform(-0.5, 0.5, size=(10_000, 25, 10))
    values = descent_variants.gdpp_eigenvalue(np.linalg.svd(contexts, compute_uv=False) ** 2, gamma)
    assert np.median(np.max(values, axis=1) / np.min(values, axis=1)) == pytest.approx(median, rel=0.03)


def test_the_balanced_curvature_minimises_the_condition_number():
    smallest, largest = 0.4, 5.0
    spectrum = np.linspace(smallest, largest, 20_001)

    def condition(gamma):
        values = descent_variants.gdpp_eigenvalue(spectrum, gamma)
        return np.max(values) / np.min(values)

    best = descent_variants.gdpp_balanced_curvature(smallest, largest)
    assert condition(best) < min(condition(0.999 * best), condition(1.001 * best))


@pytest.mark.parametrize(("length", "published"), [(50, 0.0704), (100, 0.0369)])
def test_the_balanced_curvature_of_sampled_spectra_is_about_the_published_one(length, published):
    contexts = np.random.default_rng(1).uniform(-0.5, 0.5, size=(10_000, length, 10))
    values = np.linalg.svd(contexts, compute_uv=False) ** 2
    # The extremes of a sample vary.
    assert descent_variants.gdpp_balanced_curvature(float(np.min(values)), float(np.max(values))) == pytest.approx(
        published, rel=0.05
    )


@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("width", [3, 9])
def test_kernel_descent_is_descent_on_features(rng, steps, width):
    features, query, labels = rng.normal(size=(7, width)), rng.normal(size=width), rng.normal(size=(7, 2))
    weights = vonoswald2022.descent_iterates(np.zeros((2, width)), features, labels, np.full(steps, 0.2))[-1]
    prediction = descent_variants.kernel_descent(features @ features.T, features @ query, labels, 0.2, steps)
    np.testing.assert_allclose(prediction, weights @ query, rtol=1e-11)


@pytest.mark.parametrize("width", [3, 9])
def test_kernel_descent_tends_to_interpolation(rng, width):
    features, query, labels = rng.normal(size=(7, width)), rng.normal(size=width), rng.normal(size=(7, 2))
    prediction = descent_variants.kernel_descent(features @ features.T, features @ query, labels, 0.2, np.inf)
    np.testing.assert_allclose(prediction, query @ np.linalg.pinv(features) @ labels, rtol=1e-10)


def test_the_centred_step_ignores_the_mean_of_the_inputs(rng):
    x, y, query = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), rng.normal(size=3)
    step = descent_variants.centred_step(x, y, query, 0.6)
    np.testing.assert_allclose(descent_variants.centred_step(x + 7, y, query, 0.6), step, rtol=1e-12)
    centred = x - np.mean(x, axis=0)[None]
    np.testing.assert_allclose(vonoswald2022.gradient_step(np.zeros((2, 3)), centred, y, 0.6) @ query, step, rtol=1e-12)


def test_weight_decay_converges_to_ridge_regression(rng):
    x, y, decay = rng.normal(size=(5, 3)), rng.normal(size=(5, 2)), 0.3
    expected = np.linalg.solve(x.T @ x / 5 + decay * np.eye(3), x.T @ y / 5).T
    np.testing.assert_allclose(descent_variants.ridge_descent(x, y, 0.4, decay, 1000), expected, rtol=1e-10)
    one = descent_variants.ridge_descent(x, y, 0.4, decay, 1)
    np.testing.assert_allclose(one, vonoswald2022.gradient_step(np.zeros((2, 3)), x, y, 0.4), rtol=1e-14)


def test_momentum_by_hand_and_in_the_limit(rng):
    # R = (w - 1)^2 / 2: w_1 = eta, w_2 = eta + eta (1 - eta) + mu eta.
    one = np.ones((1, 1))
    assert descent_variants.heavy_ball(one, one, 0.1, 0.5, 2)[0, 0] == pytest.approx(0.1 + 0.1 * 0.9 + 0.05, rel=1e-14)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    np.testing.assert_allclose(descent_variants.heavy_ball(x, y, 0.2, 0.5, 2000), np.linalg.lstsq(x, y)[0].T, rtol=1e-10)
