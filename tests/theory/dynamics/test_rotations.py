"""One step and least squares on rotations, against the published numbers and simulation."""

import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.theory.dynamics import rotations, vonoswald2023


@pytest.mark.parametrize(
    ("dim", "variance", "step", "loss"),
    [
        (4, 0.0, 0.2518344024, 17.8679230278),
        (4, 0.01, 0.2478940940, 19.7741533564),
        (4, 0.25, 0.1293845532, 67.1662612272),
        (10, 0.01, 0.1934090865, 60.4281695271),
    ],
)
def test_best_step(dim, variance, step, loss):
    assert rotations.best_step(dim, 20, variance) == pytest.approx((step, loss), rel=1e-9)


@pytest.mark.parametrize(("m", "t"), [(1, 2), (2, 5), (4, 9)])
def test_moments_without_noise(m, t):
    moments = rotations.step_moments(2 * m, t)
    assert moments.cross == 4 * m * (t - 1)
    assert moments.square == m * (12 * ((t - 1) ** 2 + (t - 1)) + 8 * (m - 1) * (t - 1))


def test_moments_with_noise_by_simulation():
    generator, count, t, sigma = np.random.default_rng(0), 200_000, 4, 0.5
    angles = generator.uniform(0, 2 * np.pi, (count, 2))
    states = [generator.standard_normal((count, 2)) + 1j * generator.standard_normal((count, 2))]
    for _ in range(t):
        noise = generator.standard_normal((count, 2)) + 1j * generator.standard_normal((count, 2))
        states.append(np.exp(1j * angles) * states[-1] + sigma * noise)
    scores = [np.sum(np.real(x * np.conj(states[t - 1])), axis=1) for x in states[: t - 1]]
    step = sum(score[:, None] * x for score, x in zip(scores, states[1:t], strict=True))
    drawn = (
        np.sum(np.abs(states[t]) ** 2, axis=1),
        np.sum(np.real(step * np.conj(states[t])), axis=1),
        np.sum(np.abs(step) ** 2, axis=1),
    )
    for values, expected in zip(drawn, rotations.step_moments(4, t, sigma**2), strict=True):
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(count)


def test_best_single_steps_before_the_unit_root_regime():
    excess = [rotations.best_step_excess(4, t, 0.01) for t in (3, 5, 10, 20)]
    np.testing.assert_allclose(excess, [2.60303, 2.21349, 1.92690, 1.87389], rtol=3e-6)


def test_odd_dimensions_have_no_rotation_blocks():
    with pytest.raises(InvalidValueError, match="even"):
        rotations.step_moments(3, 5)


def test_haar_limits_and_minimum_norm():
    assert rotations.haar_step_limits(4) == (9.0, 33.0)
    assert rotations.haar_step_limits(4, special=True) == (8.0, 24.0)
    assert rotations.haar_step_limits(3, special=True) == rotations.haar_step_limits(3)
    assert [rotations.minimum_norm_risk(5, t) for t in range(1, 8)] == [5, 4, 3, 2, 1, 0, 0]
    assert rotations.unit_root_excess(4, 200, 1.0) == pytest.approx(32 / 200)


def test_planar_layer():
    limit = rotations.planar_limit(5, 0.3, 0.6)
    assert (limit.value, limit.key_query, limit.reverse) == pytest.approx((0.72551, 0.48613, -0.14156), abs=5e-6)
    assert limit.loss == pytest.approx(1.26044983, abs=5e-9)
    assert rotations.planar_diagonal(5) == pytest.approx((0.20689655, 1.75862069), abs=5e-9)
    assert rotations.planar_diagonal(5) == pytest.approx(rotations.best_step(2, 5))
    assert rotations.planar_reverse_gradient(5, 0.3, 0.6) == pytest.approx(2.246, abs=5e-4)


def test_planar_gradient_is_a_difference_quotient():
    v, c, square = rotations.planar_form(6, 0.8)

    def loss(q):
        theta = 0.7 * np.array([0.4, q])
        return (v - 2 * c @ theta + theta @ square @ theta) / 2

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6 / 2
    assert rotations.planar_reverse_gradient(6, 0.4, 0.7, 0.8) == pytest.approx(slope, rel=1e-6)


def test_rates_of_refinement():
    assert vonoswald2023.chebyshev_factor(10.0, 5) == pytest.approx(0.07556328, abs=5e-9)
    assert vonoswald2023.constant_step_factor(10.0, 5) == pytest.approx(0.36664783, abs=5e-9)


def test_many_full_context_steps_are_least_squares():
    generator = np.random.default_rng(0)
    inputs, labels, query = generator.standard_normal((8, 2)), generator.standard_normal((8, 3)), np.ones(2)
    fitted = np.linalg.lstsq(inputs, labels, rcond=None)[0].T @ query
    np.testing.assert_allclose(vonoswald2023.full_context_steps(inputs, labels, query, 0.05, 2000), fitted, rtol=1e-10)
