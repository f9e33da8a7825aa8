"""One layer on AR(p) series: the closed forms against Isserlis moments, enumeration, quadrature and reference numbers."""

import itertools

import numpy as np
import pytest

from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.theory.series import bartlett, isserlis, zhou2025

NONE = np.zeros(0)
# rho, N, lifted w' Delta w, gap of the trained layer.
TABLE = [
    ([0.5], 10, 0.046492399, 0.047619061),
    ([0.5], 20, 0.027439840, 0.027777778),
    ([0.5], 100, 0.006394313, 0.006410256),
    ([0.9], 10, 0.585883180, 0.626286262),
    ([0.9], 100, 0.081747908, 0.081983806),
    ([0.5, -0.3], 20, 0.023115238, 0.024140212),
    ([0.5, -0.3], 50, 0.010529118, 0.010728983),
    ([1.2, -0.5], 20, 0.215308105, 0.225308653),
    ([0.4, -0.2, 0.3], 20, 0.019754987, 0.021295713),
    ([0.4, -0.2, 0.3], 100, 0.004831979, 0.004914394),
]


def moments(rho, length, sigma=1.0, moving=NONE, order=None):
    order = len(rho) if order is None else order
    gamma = bartlett.autocovariances(np.asarray(rho), np.asarray(moving), sigma, length + order + 1)
    return isserlis.feature_moments(gamma, order)


def gap(rho, length, weights, sigma=1.0):
    return moments(rho, length, sigma).risk(weights.coefficients) - sigma**2


def pairings(indices):
    if not indices:
        yield ()
        return
    for i in range(1, len(indices)):
        for rest in pairings(indices[1:i] + indices[i + 1 :]):
            yield ((indices[0], indices[i]), *rest)


def test_moments_are_sums_over_all_pairings():
    rho, length, order = np.array([0.5, -0.3]), 3, 2
    gamma = bartlett.autocovariances(rho, NONE, 0.8, length + order + 1)
    found = isserlis.feature_moments(gamma, order)

    def expectation(times):
        return sum(np.prod([gamma[abs(times[i] - times[j])] for i, j in p]) for p in pairings(tuple(range(len(times)))))

    labels = [(j, k, m) for j in range(3) for k in range(j, 3) for m in range(2)]
    windows = range(length)
    for (a, (j, k, m)), (b, (q, r, s)) in itertools.product(enumerate(labels[:7]), enumerate(labels)):
        terms = [expectation((i + j, i + k, length + m, u + q, u + r, length + s)) for i in windows for u in windows]
        assert np.isclose(found.gram[a, b], np.mean(terms), rtol=1e-12)
    for a, (j, k, m) in enumerate(labels):
        means = [np.mean([expectation((i + j, i + k, length + m, length + t)) for i in windows]) for t in range(3)]
        np.testing.assert_allclose([*found.history[a], found.cross[a]], means, rtol=1e-12)


@pytest.mark.parametrize(("rho", "length", "lifted", "trained"), TABLE)
def test_the_table_of_gaps(rho, length, lifted, trained):
    found = moments(rho, length)
    best = isserlis.best_layer(found, found.order, bartlett.reflected_filters(np.asarray(rho)))
    assert abs(found.lifted_gap() - lifted) < 1e-9
    assert abs(best.risk - 1 - trained) < 1e-9
    assert np.linalg.eigvalsh(found.unexplained())[0] > 0


@pytest.mark.parametrize("sigma", [1.0, 0.05, 30.0])
def test_closed_weights_are_the_best_ones_in_every_scale(sigma):
    rho, length = [0.5, -0.3], 25
    best = isserlis.best_layer(moments(rho, length, sigma), len(rho), bartlett.reflected_filters(np.asarray(rho)))
    closed = zhou2025.trained_weights(rho, sigma, length)
    np.testing.assert_allclose(best.theta, closed.coefficients, rtol=0, atol=1e-7 * np.abs(best.theta).max())
    assert np.isclose(best.risk - sigma**2, zhou2025.trained_gap(rho, sigma, length), rtol=1e-9)
    assert np.isclose(gap(rho, length, closed, sigma), zhou2025.trained_gap(rho, sigma, length), rtol=1e-9)


@pytest.mark.parametrize("rho", [[0.5], [0.9], [0.6, 0.2], [0.4, -0.2, 0.3]])
def test_gaps_of_explicit_weights_are_exact_at_short_lengths(rho):
    length = 6
    assert np.isclose(gap(rho, length, zhou2025.innovation_weights(rho, 1.0)), zhou2025.innovation_gap(rho, 1.0, length))
    assert np.isclose(gap(rho, length, zhou2025.reversed_weights(rho, 1.0, length)), zhou2025.reversed_gap(rho, 1.0, length))
    scales = np.linspace(0.3, 1.1, 2001)
    found = moments(rho, length)
    unit = zhou2025.innovation_weights(rho, 1.0).coefficients
    least = min(found.risk(scale * unit) - 1 for scale in scales)
    assert np.isclose(least, zhou2025.scaled_innovation_gap(rho, 1.0, length), rtol=1e-6)


@pytest.mark.parametrize("rho", [[0.5], [-0.7], [0.6, 0.2], [0.4, -0.2, 0.3]])
def test_the_time_reversed_filter_is_stationary(rho):
    found = moments(rho, 7)
    layer = zhou2025.reversed_weights(rho, 1.0, 7)
    residual = found.gram @ layer.coefficients - found.cross
    for i in range(len(layer.pi)):
        unit = np.eye(len(layer.pi))[i]
        assert abs(residual @ zhou2025.coefficients(unit, layer.query)) < 1e-13
        for lag in range(len(rho)):
            direction = np.outer(unit, np.eye(len(rho))[lag])
            assert abs(residual @ zhou2025.coefficients(layer.pi, direction)) < 1e-13


def test_innovation_moments_give_gaps_by_enumeration():
    # Two innovations in the context, one before it: x = e_1 psi .. with a distribution on three points.
    values, quadrature_weights = np.array([-np.sqrt(2.0), 0.0, np.sqrt(2.0)]), np.array([0.25, 0.5, 0.25])
    fourth, sixth = quadrature_weights @ values**4, quadrature_weights @ values**6
    rho, length, lags = 0.3, 2, 7
    total = 0.0
    psi = rho ** np.arange(1, lags + 1)
    for picks in itertools.product(range(3), repeat=lags):
        e = values[list(picks)]
        scale = np.mean(e[:length] ** 2)
        total += np.prod(quadrature_weights[list(picks)]) * (scale - 1) ** 2 * (psi @ e) ** 2
    assert np.isclose(total, zhou2025.innovation_gap([rho], 1.0, length, fourth, sixth), rtol=1e-7)


def test_moments_of_the_distributions():
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, weights = 22.5 * (nodes + 1), 22.5 * weights
    densities = {
        "gaussian": np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi),
        "laplace": np.exp(-np.sqrt(2) * x) / np.sqrt(2),
    }
    for distribution, density in densities.items():
        moments_ = [2 * weights @ (x**power * density) for power in (2, 4, 6)]
        np.testing.assert_allclose(moments_, [1.0, *zhou2025.innovation_moments(distribution)], rtol=1e-8)
    assert zhou2025.innovation_moments("uniform") == (3**2 / 5, 3**3 / 7)
    assert zhou2025.innovation_moments("rademacher") == (1.0, 1.0)


@pytest.mark.parametrize("rho", [[0.5], [0.5, -0.3], [0.6, 0.2]])
def test_limits_are_named_by_their_coefficients(rho):
    known = (rho, 1.0, 35)
    best, back = (layer(*known) for layer in (zhou2025.trained_weights, zhou2025.reversed_weights))
    assert zhou2025.name_limit(best.coefficients, *known) == zhou2025.GLOBAL_MINIMUM
    assert zhou2025.name_limit(back.coefficients, *known) == zhou2025.TIME_REVERSED
    # The same function in another gauge, and a mixture of the two.
    assert zhou2025.name_limit(zhou2025.coefficients(-2 * back.pi, back.query / -2), *known) == zhou2025.TIME_REVERSED
    assert zhou2025.name_limit((best.coefficients + back.coefficients) / 2, *known) == zhou2025.OTHER


def test_closed_forms_are_refused_where_they_do_not_hold():
    with pytest.raises(AssumptionError, match="rho\\(A\\)"):
        zhou2025.trained_weights([0.9], 1.0, 10)
    zhou2025.check_innovation_filter_is_best([0.5, -0.3], 20)
    with pytest.raises(AssumptionError, match="roots reflected"):
        zhou2025.check_innovation_filter_is_best([-0.214, 0.428], 23)


def test_a_filter_with_one_reflected_root_can_be_better_than_the_innovation_filter():
    rho = [-0.214, 0.428]
    best = isserlis.best_layer(moments(rho, 23), len(rho), bartlett.reflected_filters(np.asarray(rho)))
    closed = zhou2025.trained_gap(rho, 1.0, 23)
    assert np.isclose((best.risk - 1) / closed - 1, -5.855e-4, atol=1e-6)


@pytest.mark.parametrize(("length", "difference"), [(10, -0.03416330), (50, -0.00778137), (200, -0.0019973406)])
def test_a_layer_beats_regression_on_a_moving_average(length, difference):
    found = moments([], length, moving=[0.0, 0.9], order=1)
    assert np.isclose(found.linear_risk, 1.81)
    assert abs(isserlis.best_layer(found, found.order).risk - 1.81 - difference) < 1e-8


@pytest.mark.parametrize(
    ("rho", "moving", "order", "limit"),
    [
        ([0.5], [], 1, 2.0),
        ([0.9], [], 1, 2.0),
        ([1.2, -0.5], [], 2, 2.0),
        ([0.4, -0.2, 0.3], [], 3, 2.0),
        ([0.5], [], 2, 2.0),
        ([], [0.8], 1, 2.441817776),
        ([], [0.8], 2, 2.264369341),
        ([0.6], [0.7], 1, 2.681982780),
    ],
)
def test_the_limit_of_the_gap(rho, moving, order, limit):
    gamma = bartlett.autocovariances(np.asarray(rho), np.asarray(moving), 0.7, 800)
    assert abs(bartlett.scale_variance(gamma, order) - limit) < 2e-9
    assert np.isclose(bartlett.scale_variance(gamma, order, -1.2), limit - 1.2)
    spectral = bartlett.spectral_covariance(np.asarray(rho), np.asarray(moving), 0.7, order)
    np.testing.assert_allclose(bartlett.covariance(gamma, order), spectral, rtol=1e-11)


def test_autocovariances_and_memory():
    np.testing.assert_allclose(bartlett.autocovariances(NONE, np.array([0.8]), 2.0, 3), [4 * 1.64, 4 * 0.8, 0.0], atol=1e-15)
    np.testing.assert_allclose(bartlett.autocovariances(np.array([0.5, -0.3]), NONE, 1.0, 1), 1.2896825397, rtol=1e-10)
    with pytest.raises(InvalidValueError, match="spectral radius below 1"):
        bartlett.memory(np.array([1.2, 0.1]))


def test_reflected_filters_whiten_the_series():
    rho = np.array([0.4, -0.2, 0.3])
    filters = bartlett.reflected_filters(rho)
    np.testing.assert_allclose(filters[0], [-0.3, 0.2, -0.4, 1.0], atol=1e-12)
    np.testing.assert_allclose(filters[-1], [1.0, -0.4, 0.2, -0.3], atol=1e-12)
    for filter_ in filters:
        np.testing.assert_allclose(np.convolve(filter_, filter_[::-1]), np.convolve(filters[0], filters[0][::-1]), atol=1e-12)


def test_the_layer_is_linear_in_its_features():
    rng = np.random.default_rng(0)
    for order in (1, 2, 3):
        w_p, w_q = rng.standard_normal((2, order + 1, order + 1))
        series = rng.standard_normal(9)
        phi = zhou2025.features(series, order)
        assert len(phi) == zhou2025.feature_count(order) == order * (order + 1) * (order + 2) // 2
        assert np.isclose(zhou2025.layer(series, w_p, w_q), zhou2025.coefficients(w_p[-1], w_q[:, :-1]) @ phi)
