"""Autoregressive pretraining on random phases: formulas against brute force, ODEs, each other, and known numbers."""

import itertools

import numpy as np
import pytest
import scipy.integrate

from icl_lab.claims.zheng2024.loss import random_sequences
from icl_lab.core.errors import AssumptionError, InvalidValueError
from icl_lab.theory.dynamics import all_ones, diagonal_loss, phases, recovery, zheng2024

GAUSSIAN = zheng2024.constants("gaussian", 5, 1.0)
PRINTED = 1e-9


def active_blocks(value, key_query):
    """W_PV (d, 2d) and W_KQ (2d, 2d) whose only non-zero blocks are P (the first) and K (row x_{t-1}, column x_t)."""
    dim = len(value)
    return np.pad(value, ((0, 0), (0, dim))), np.pad(key_query, ((dim, 0), (0, dim)))


@pytest.mark.parametrize("distribution", zheng2024.DISTRIBUTIONS)
def test_the_constants_are_the_moments_of_the_nodes(distribution):
    points, weights = phases.start_nodes(distribution, 3, 0.7)
    squares = np.abs(points) ** 2
    constants = zheng2024.constants(distribution, 3, 0.7)
    # The first coordinate of the nodes may be kept positive; the others are free.
    assert weights @ squares[:, 1] == pytest.approx(constants.m2, rel=1e-12)
    assert weights @ squares[:, 1] ** 2 == pytest.approx(constants.kappa1, rel=1e-12)
    assert weights @ squares[:, 1] ** 3 == pytest.approx(constants.kappa2, rel=1e-12)
    mixed = weights @ (squares[:, 1] * (squares[:, 0] ** 2 + squares[:, 2] ** 2))
    assert mixed == pytest.approx(constants.kappa3, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("distribution", ["constant", "skew"])
def test_the_odd_moments_are_those_of_the_nodes(distribution):
    points, weights = phases.start_nodes(distribution, 3, 0.7)
    j, k, m = points.T
    odd = diagonal_loss.odd_moments(distribution, 3, 0.7)
    expected = (j**3 * k, j**5 * k, j**3 * k**3, m**2 * j**3 * k)
    np.testing.assert_allclose(odd, [weights @ values for values in expected], atol=1e-14)


@pytest.mark.parametrize(("length", "mean"), [(5, 11 / 18), (20, 0.194173), (100, 0.052727311301414)])
def test_the_mean_inverse_length(length, mean):
    assert zheng2024.mean_inverse_length(length) == pytest.approx(mean, rel=3e-6)


@pytest.mark.parametrize(("distribution", "loss"), [("gaussian", 1.449438745), ("constant", 2.228404368)])
def test_the_loss_of_two_coordinates(distribution, loss):
    uniform = diagonal_loss.exchangeable(zheng2024.constants(distribution, 2, 1.0), 0.31 * np.ones(2), 0.47 * np.ones(2), 5)
    assert uniform == pytest.approx(loss, abs=PRINTED)


@pytest.mark.parametrize("distribution", zheng2024.DISTRIBUTIONS)
def test_the_loss_at_diagonal_weights_is_the_average_over_sequences(distribution, rng):
    a, b = rng.normal(size=(2, 2)) + 1j * rng.normal(size=(2, 2))
    brute = phases.loss(*active_blocks(np.diag(b), np.diag(a)), distribution, 6, 0.8)
    assert diagonal_loss.exchangeable(zheng2024.constants(distribution, 2, 0.8), a, b, 6) == pytest.approx(brute, rel=1e-12)


def test_the_loss_of_coordinates_that_differ(rng):
    """Independent Rademacher coordinates of sizes r_j, by scaling the weights of equal ones."""
    sizes, (a, b) = np.array([0.5, 1.3]), rng.normal(size=(2, 2))
    total = 0.0
    for states, weights in phases.sequences("rademacher", 2, 5, 1.0):
        scaled = states * sizes
        errors = phases.predictions(*active_blocks(np.diag(b), np.diag(a)), scaled) - scaled[:, 2:]
        total += np.sum(weights[:, None, None] * np.abs(errors) ** 2) / 2
    mixed = np.outer(sizes**2, sizes**4)
    assert diagonal_loss.loss(a, b, sizes**2, sizes**4, sizes**6, mixed, 5) == pytest.approx(total, rel=1e-12)


def test_fewer_angles_are_not_enough(rng):
    w_pv, w_kq = rng.normal(size=(2, 4)), rng.normal(size=(4, 4))
    exact = phases.loss(w_pv, w_kq, "constant", 5, 1.0)
    assert phases.loss(w_pv, w_kq, "constant", 5, 1.0, angles=23) == pytest.approx(exact, rel=1e-12)
    assert phases.loss(w_pv, w_kq, "constant", 5, 1.0, angles=4) != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("distribution", zheng2024.DISTRIBUTIONS)
def test_random_sequences_have_the_average_loss(distribution, rng):
    w_pv, w_kq = rng.normal(size=(2, 4)), rng.normal(size=(4, 4))
    batches = random_sequences(distribution, 2, 4, 0.6, 40_000, 1)
    drawn = np.concatenate([phases.half_squared_errors(w_pv, w_kq, states) for states in batches])
    error = np.std(drawn, ddof=1) / np.sqrt(40_000)
    assert abs(np.mean(drawn) - phases.loss(w_pv, w_kq, distribution, 4, 0.6)) < 4 * error


def test_the_predictions_are_the_sum_over_tokens(rng):
    states = rng.normal(size=(1, 5, 2)) + 1j * rng.normal(size=(1, 5, 2))
    w_pv, w_kq = rng.normal(size=(2, 4)), rng.normal(size=(4, 4))
    previous = np.concatenate([np.zeros((1, 2)), states[0, :-1]])
    tokens = np.concatenate([states[0], previous], axis=1)
    for t in (2, 3, 4):
        seen = sum(w_pv @ e * (e.conj() @ w_kq @ tokens[t - 1]) for e in tokens[:t]) / (t - 1)
        np.testing.assert_allclose(phases.predictions(w_pv, w_kq, states)[0, t - 2], seen, rtol=1e-12)


@pytest.mark.parametrize(
    ("distribution", "dim", "length", "scale", "product"),
    [
        ("gaussian", 2, 5, 1.0, 18 / 101),
        ("gaussian", 5, 100, 1.0, 0.191905088526),
        ("gaussian", 5, 100, 0.5, 0.767620354),
        ("gaussian", 5, 100, 2.0, 0.047976272),
        ("sparse", 4, 9, 1.3, 0.5917159763),
        ("rademacher", 5, 100, 1.0, 0.825825720597),
        ("constant", 5, 100, 1.0, 0.825825720597),
    ],
)
def test_the_limit_of_the_product(distribution, dim, length, scale, product):
    limit = zheng2024.limit_product(zheng2024.constants(distribution, dim, scale), length)
    assert limit == pytest.approx(product, abs=6e-10)


def test_the_minimal_loss():
    assert zheng2024.minimum_loss(GAUSSIAN, 5, 100) == pytest.approx(103.9497599, abs=1e-7)
    ones = zheng2024.constants("constant", 5, 1.0)
    assert zheng2024.minimum_loss(ones, 5, 100) == pytest.approx(42.6726984536, abs=PRINTED)
    assert zheng2024.minimum_loss(zheng2024.constants("sparse", 3, 0.7), 3, 12) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize(
    ("start", "a", "product"),
    [
        ((0.1, 0.1), 0.1507783429, 0.02273410869),
        ((0.5, 1.5), 0.1275570174, 0.1811251613),
        ((2.0, 2.0), 0.5398354695, 0.2914223341),
    ],
)
def test_the_time_course(start, a, product):
    constants = zheng2024.constants("gaussian", 2, 1.0)
    path_a, path_b = zheng2024.flow(constants, 5, *start, np.array([0.01, 0.05]))
    assert path_a[1] == pytest.approx(a, abs=1e-9)
    assert path_a[1] * path_b[1] == pytest.approx(product, abs=1e-9)
    assert path_a[1] ** 2 - path_b[1] ** 2 == pytest.approx(start[0] ** 2 - start[1] ** 2, abs=1e-10)
    assert zheng2024.time_to_reach(constants, 5, *start, path_a[1] * path_b[1]) == pytest.approx(0.05, rel=1e-9)


def test_the_final_rate():
    assert zheng2024.final_rate(GAUSSIAN, 100, 0.5, 1.5) == pytest.approx(3119.924629, abs=1e-6)


@pytest.mark.parametrize("start", [(0.1, 0.1), (0.5, 1.5), (2.0, 1.0), (-1.5, 0.5), (-0.2, -0.9), (0.0, 0.4)])
def test_the_limit_is_where_the_flow_ends(start):
    constants = zheng2024.constants("gaussian", 2, 1.0)
    path_a, path_b = zheng2024.flow(constants, 5, *start, np.array([100.0]))
    assert zheng2024.limit(constants, 5, *start) == pytest.approx((path_a[0], path_b[0]), rel=1e-8)


def test_the_limit_of_the_factors_is_known():
    assert zheng2024.limit(zheng2024.constants("gaussian", 2, 1.0), 5, 0.5, 1.5)[0] == pytest.approx(0.1255255346, abs=1e-10)


def test_what_the_theorem_leaves_out_is_refused():
    with pytest.raises(AssumptionError, match="saddle"):
        zheng2024.limit(GAUSSIAN, 100, 0.5, -0.5)
    for distribution in ("constant", "skew"):
        with pytest.raises(AssumptionError, match=r"Assumption 4\.1"):
            zheng2024.check_distribution(distribution)
    with pytest.raises(InvalidValueError, match=">= 3"):
        zheng2024.mean_inverse_length(2)
    with pytest.raises(InvalidValueError, match="one of gaussian"):
        zheng2024.constants("cauchy", 2, 1.0)


@pytest.mark.parametrize(
    ("distribution", "scale", "step_size", "steps", "ends"),
    [
        ("gaussian", 0.5, 1e-3, 200, (0.732560553, 0.767620284, 0.767951118)),
        ("gaussian", 1.0, 1e-4, 150, (0.191455065, 0.191905089, 0.191920728)),
        ("gaussian", 2.0, 2e-6, 200, (0.044141926, 0.047976272, 0.048808904)),
        ("sparse", 0.5, 3e-2, 200, (3.999471817, 3.999998102, 4.000000000)),
        ("sparse", 1.0, 1e-3, 200, (0.963199722, 0.999996816, 1.000241514)),
        ("sparse", 2.0, 1e-4, 120, (0.247076296, 0.250000000, 0.250080698)),
    ],
)
def test_the_ends_of_the_simulated_curves(distribution, scale, step_size, steps, ends):
    constants = zheng2024.constants(distribution, 5, scale)
    for start, end in zip([(0.1, 0.1), (0.5, 1.5), (2.0, 2.0)], ends, strict=True):
        a, b = zheng2024.descent(constants, 100, *start, step_size, steps)
        assert a[-1] * b[-1] == pytest.approx(end, abs=6e-10)


@pytest.mark.parametrize(
    ("distribution", "largest"), [("constant", 0.6106), ("skew", 0.5022), ("gaussian", 0.0), ("sparse", 0.0)]
)
def test_the_largest_gradient_off_the_diagonal(distribution, largest):
    pair = diagonal_loss.off_diagonal_gradient(diagonal_loss.odd_moments(distribution, 2, 1.0), 5, 0.31, 0.47)
    assert max(map(abs, pair)) == pytest.approx(largest, abs=5e-5)


def test_the_targets_part_of_the_gradient_off_the_diagonal():
    odd = diagonal_loss.odd_moments("constant", 2, 1.0)
    assert diagonal_loss.off_diagonal_gradient(odd, 5, 0.0, 1.0)[0] == pytest.approx(-11 / 6, rel=1e-14)


@pytest.mark.parametrize("distribution", ["constant", "skew"])
def test_the_gradient_off_the_diagonal_is_that_of_the_average(distribution):
    step, a, b = 1e-5, 0.3, 0.6

    def loss(in_key, in_value):
        key_query, value = a * np.eye(3), b * np.eye(3)
        key_query[0, 2] += in_key
        value[0, 2] += in_value
        return phases.loss(*active_blocks(value, key_query), distribution, 4, 0.9)

    expected = diagonal_loss.off_diagonal_gradient(diagonal_loss.odd_moments(distribution, 3, 0.9), 4, a, b)
    differences = [(loss(step, 0) - loss(-step, 0)) / (2 * step), (loss(0, step) - loss(0, -step)) / (2 * step)]
    assert differences == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("distribution", "error"),
    [("gaussian", 2.081109527), ("rademacher", 0.6220200331), ("complex_gaussian", 1.81483303), ("sparse", 0.0)],
)
def test_the_squared_error_at_a_position(distribution, error):
    constants = zheng2024.constants(distribution, 5, 1.0)
    product = zheng2024.limit_product(constants, 100)
    assert recovery.squared_error(constants, 5, product, 30) == pytest.approx(error, abs=2e-9)


@pytest.mark.parametrize(("distribution", "ratio", "error"), [("gaussian", 1 / 5, 2 / 5), ("complex_gaussian", 1 / 3, 1 / 3)])
def test_long_sequences_of_gaussian_starts(distribution, ratio, error):
    constants = zheng2024.constants(distribution, 3, 0.7)
    product = recovery.long_training_product(constants)
    assert recovery.mean_ratio(distribution, product, 0.7) == pytest.approx(ratio, rel=1e-13)
    assert recovery.limiting_relative_error(constants) == pytest.approx(error, rel=1e-13)
    assert recovery.squared_error(constants, 3, product, np.inf) == pytest.approx(3 * constants.m2 * error, rel=1e-13)


@pytest.mark.parametrize(
    ("distribution", "recovered"), [("sparse", True), ("rademacher", True), ("constant", True), ("gaussian", False)]
)
def test_recovery_is_equality_of_cauchy_schwarz(distribution, recovered):
    constants = zheng2024.constants(distribution, 3, 0.7)
    (states,) = random_sequences(distribution, 3, 1, 0.7, 100, 0)
    starts = states[:, 0]
    assert recovery.is_recovered(starts, constants) is recovered
    assert (recovery.limiting_relative_error(constants) < 1e-12) is recovered


def test_the_gradient_step_is_the_trained_layer(rng):
    states = rng.normal(size=(6, 2)) + 1j * rng.normal(size=(6, 2))
    target = np.zeros((1, 2))
    layer = phases.predictions(*active_blocks(0.6 * np.eye(2), 0.5 * np.eye(2)), np.concatenate([states, target])[None])
    np.testing.assert_allclose(recovery.gradient_step(states, 0.3 / 5), layer[0, -1], rtol=1e-12)


@pytest.mark.parametrize("exponents", [(2, -2), (1, 1, -2), (1, -1, 2, -2), (3, -1, -2, 1, -1), (0, 1), (0, 2, -2)])
def test_moments_of_power_sums(exponents):
    dim, angles = 3, 13
    turns = np.exp(2j * np.pi / angles * np.array(list(itertools.product(range(angles), repeat=dim))))
    brute = np.mean(np.prod([np.sum(turns**k, axis=1) for k in exponents], axis=0))
    counted = all_ones.power_sum_moment([np.array([k]) for k in exponents], dim)
    assert counted == pytest.approx([brute.real], abs=1e-10)


@pytest.mark.parametrize(("dim", "length"), [(2, 5), (3, 4)])
def test_the_all_ones_loss_is_the_average_over_sequences(dim, length, rng):
    a, a_off, b, b_off = rng.normal(size=4)
    ones, identity = np.ones((dim, dim)), np.eye(dim)
    matrices = active_blocks(b_off * ones + (b - b_off) * identity, a_off * ones + (a - a_off) * identity)
    form = all_ones.quadratic(dim, length, 0.9)
    assert form.loss(a, a_off, b, b_off) == pytest.approx(phases.loss(*matrices, "constant", length, 0.9), rel=1e-12)


def test_the_slopes_are_those_of_the_loss(rng):
    form, point = all_ones.quadratic(3, 6), rng.normal(size=4)
    differences = [(form.loss(*(point + 1e-6 * e)) - form.loss(*(point - 1e-6 * e))) / 2e-6 for e in np.eye(4)]
    np.testing.assert_allclose(form.slopes(*point), differences, rtol=1e-6)


def test_the_all_ones_solution():
    form = all_ones.quadratic(5, 100)
    best = all_ones.minimiser(form)
    products = (best.a * best.b, best.a * best.b_off, best.a_off * best.b)
    assert products == pytest.approx((0.853631787, -0.028044858, -0.044885666), abs=1e-9)
    assert (best.a_off / best.a, best.b_off / best.b) == pytest.approx((-0.052581999, -0.032853578), abs=1e-9)
    assert form.loss(*best) == pytest.approx(38.1795787403, abs=PRINTED)
    for start, a, b in (((0.1, 0.1), 0.922377848, 0.925468655), ((0.5, 1.5), 0.561758708, 1.519570190)):
        limit = all_ones.limit(form, 5, *start)
        assert (limit.a, limit.b) == pytest.approx((a, b), abs=1e-9)
        np.testing.assert_allclose(all_ones.flow(form, 5, *start, np.array([1.0]))[-1], limit, rtol=1e-7)
    ends = [all_ones.descent(form, 5, *start, 5e-4, 200)[-1] for start in ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))]
    assert [end[0] * end[2] for end in ends] == pytest.approx((0.853626406, 0.853634059, 0.853631925), abs=1e-9)


@pytest.mark.parametrize(("length", "ratio"), [(10, -0.0901), (20, -0.0861), (50, -0.0696)])
def test_the_off_diagonals_of_the_all_ones_solution_decay(length, ratio):
    best = all_ones.minimiser(all_ones.quadratic(5, length))
    assert best.a_off / best.a == pytest.approx(ratio, abs=5e-5)


def test_two_all_ones_coordinates():
    form = all_ones.quadratic(2, 5)
    assert form.loss(*all_ones.minimiser(form)) == pytest.approx(0.8100160877, abs=PRINTED)


def test_the_reduced_equations_are_the_flow_of_the_diagonal_loss():
    """The slopes of the loss in all diagonal entries, by finite differences."""
    constants, a, b, step = zheng2024.constants("gaussian", 2, 0.8), 0.4, 0.9, 1e-6

    def loss(change_a, change_b):
        first = np.array([1.0, 0.0])
        return diagonal_loss.exchangeable(constants, a + change_a * first, b + change_b * first, 6)

    slopes = [(loss(step, 0) - loss(-step, 0)) / (2 * step), (loss(0, step) - loss(0, -step)) / (2 * step)]
    assert zheng2024.velocity(constants, 6, a, b) == pytest.approx(tuple(-s for s in slopes), rel=1e-7)
    scalar = scipy.integrate.solve_ivp(
        lambda _, s: -np.hypot(a**2 - b**2, 2 * s) * 4 * (zheng2024.curvature(constants, 6) * s - constants.kappa1),
        (0, 0.1),
        [a * b],
        rtol=1e-11,
        atol=1e-13,
    )
    path_a, path_b = zheng2024.flow(constants, 6, a, b, np.array([0.1]))
    assert path_a[0] * path_b[0] == pytest.approx(scalar.y[0, -1], rel=1e-9)
