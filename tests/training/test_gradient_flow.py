"""The flow against known limits, trajectories, conserved quantities; its verdicts; its failures."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from icl_lab import objectives, training
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.models import LinearSelfAttention, LSAWeights, SeparateWeights
from icl_lab.models.initializers import zhang
from icl_lab.objectives.objective import Objective
from icl_lab.tasks import LinearRegression
from icl_lab.training import Verdict, driver

SPECTRUM = np.array([2.0, 1.0, 0.5])
GAMMA_INVERSE = np.array([1 / 2.55, 1 / 1.45, 1 / 0.90])


@pytest.fixture
def loss():
    return objectives.population(LinearRegression(dim=3, context_length=10, covariance=SPECTRUM), LinearSelfAttention())


def hand_written_flow(times):
    """dU/dt = -u^2 Gamma Lambda U Lambda + u Lambda^2 and its companion, diagonal, by scipy: no code shared with the lab."""
    gamma = 1 / GAMMA_INVERSE

    def velocity(t, y):
        u, diagonal = y[0], y[1:]
        return np.append(
            np.sum(SPECTRUM**2 * diagonal) - u * np.sum(gamma * SPECTRUM**2 * diagonal**2),
            u * SPECTRUM**2 - u**2 * gamma * SPECTRUM**2 * diagonal,
        )

    start = np.append(0.1, np.full(3, 0.1 / np.sqrt(3)))
    return scipy.integrate.solve_ivp(velocity, (0, times[-1]), start, "DOP853", times, rtol=1e-12, atol=1e-14).y


def diagonal(weights):
    return np.diagonal(weights.w_kq, axis1=-2, axis2=-1)[..., :3]


@pytest.mark.parametrize("solver", ["auto", "dopri8", "kvaerno5"])
def test_flow_from_the_theorems_start_ends_at_its_limit(loss, solver):
    result = training.gradient_flow(loss, zhang(3, 0.1), solver=solver)
    assert result.verdict is Verdict.CONVERGED
    limit, value = result.limit, np.sqrt(np.linalg.norm(GAMMA_INVERSE))
    assert limit.w_pv[3, 3] == pytest.approx(value, rel=1e-7)  # ten times the weight tolerance
    np.testing.assert_allclose(diagonal(limit), GAMMA_INVERSE / value, rtol=1e-7)
    assert np.count_nonzero(np.abs(limit.w_pv) > 1e-9) == 1
    np.testing.assert_allclose(limit.w_kq - np.diag(np.diag(limit.w_kq)), 0, atol=1e-9)
    assert isinstance(limit.w_pv, np.ndarray)
    assert limit.w_pv.dtype == np.float64


def test_trajectory_at_chosen_times_equals_a_hand_written_ode(loss):
    times = np.array([0.0, 1.0, 2.0, 3.0, 5.0])
    result = training.gradient_flow(loss, zhang(3, 0.1), times=times, stop_at_last_time=True)
    np.testing.assert_allclose(result.trajectory.times, times)
    expected = hand_written_flow(times)
    np.testing.assert_allclose(result.trajectory.weights.w_pv[:, 3, 3], expected[0], rtol=1e-8)
    np.testing.assert_allclose(diagonal(result.trajectory.weights), expected[1:].T, rtol=1e-8)
    assert result.verdict is Verdict.MAX_STEPS
    assert "last of the asked times, 5" in result.reason


def test_full_weights_follow_the_same_path_as_the_structured_form(loss):
    times = [1.0, 4.0]
    structured = training.gradient_flow(loss, zhang(3, 0.1), times=times, stop_at_last_time=True)
    start = zhang(3, 0.1)
    nudged = LSAWeights(start.w_pv, np.asarray(start.w_kq) + 1e-13 * np.eye(4)[3][:, None])
    full = training.gradient_flow(loss, nudged, times=times, stop_at_last_time=True)
    np.testing.assert_allclose(full.trajectory.weights.w_kq, structured.trajectory.weights.w_kq, atol=1e-8)
    np.testing.assert_allclose(full.trajectory.losses, structured.trajectory.losses, rtol=1e-8)


def test_loss_falls_along_the_recorded_path_and_balancedness_is_conserved(loss):
    result = training.gradient_flow(loss, zhang(3, 0.1), solver="dopri8")
    assert np.all(np.diff(result.trajectory.losses) <= 1e-12)
    weights = result.trajectory.weights
    drift = weights.w_pv[:, 3, 3] ** 2 - np.sum(weights.w_kq**2, axis=(1, 2))
    assert np.max(np.abs(drift)) < 1e-8


@pytest.mark.parametrize(("solver", "method"), [("auto", "exponential"), ("kvaerno5", "kvaerno5")])
def test_a_wide_spectrum_converges_to_the_closed_form_at_any_step(solver, method):
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    lam = rotation @ np.diag([1.0, 0.3, 0.05, 0.01]) @ rotation.T
    lam = 0.5 * (lam + lam.T)
    om = np.diag([1.0, 2.0, 0.5, 1.5])
    task = LinearRegression(dim=4, context_length=30, covariance=lam, task_covariance=om, noise_std=0.1)
    result = training.gradient_flow(objectives.population(task, LinearSelfAttention()), zhang(4, 0.1), solver=solver)
    assert result.method == method
    assert result.verdict is Verdict.CONVERGED
    tau = np.trace(lam @ om) + 0.01
    best = om @ np.linalg.inv((1 + 1 / 30) * lam @ om + tau / 30 * np.eye(4))
    product = result.limit.w_pv[4, 4] * result.limit.w_kq[:4, :4].T
    assert np.linalg.norm(product - best) < 1e-6 * np.linalg.norm(best)


@pytest.mark.parametrize("scale", [1e-3, 1e-6])
def test_a_small_start_is_carried_over_its_plateau(loss, scale):
    result = training.gradient_flow(loss, zhang(3, scale))
    assert result.verdict is Verdict.CONVERGED
    assert result.evidence.loss == pytest.approx(0.4819697994, rel=1e-9)


def test_a_start_at_the_saddle_is_a_plateau_and_not_a_limit(loss):
    result = training.gradient_flow(loss, LSAWeights(np.zeros((4, 4)), np.zeros((4, 4))))
    assert result.verdict is Verdict.PLATEAU
    assert "has fallen by less than" in result.reason


def test_a_rest_point_on_a_saddle_is_named_a_saddle(loss):
    """Rank-one heads of which one lives in the top eigenvector and the other has a value but no key and query: the flow rests
    where only one component is learned, yet the second head's key and query together would lower the loss."""
    key_query = np.zeros((2, 1, 4))
    key_query[0, 0, 0] = 0.5
    w_v = np.zeros((2, 1, 4))
    w_v[:, 0, 3] = 0.5
    weights = SeparateWeights(w_p=np.swapaxes(w_v, 1, 2).copy(), w_v=w_v, w_k=key_query, w_q=key_query.copy())
    result = training.gradient_flow(loss, weights, max_steps=400)
    g = 1 + (1 + 3.5 / 2) / 10
    assert 2 * result.evidence.loss == pytest.approx(3.5 - 2 / g, rel=1e-4)  # 400 steps leave the first head that far
    assert result.verdict is Verdict.PLATEAU
    assert "negative eigenvalue" in result.reason


def test_running_out_of_steps_is_recorded_with_the_error_left(loss):
    result = training.gradient_flow(loss, zhang(3, 0.1), max_steps=100)
    assert result.verdict is Verdict.MAX_STEPS
    assert result.steps == 100
    assert "budget of 100 steps" in result.reason
    assert result.estimated_weight_error > 1e-8


def test_polished_point_is_a_second_field_and_better(loss):
    start = zhang(3, 0.1)
    result = training.gradient_flow(loss, start, weight_tolerance=1e-4, polish=True)
    target = np.diag(GAMMA_INVERSE)

    def error(weights):
        return np.linalg.norm(weights.w_pv[3, 3] * weights.w_kq[:3, :3] - target)

    assert 1e-9 < error(result.limit) < 1e-3
    assert error(result.polished) < 1e-12


def test_the_estimated_error_bounds_the_true_one_within_a_factor_three(loss):
    result = training.gradient_flow(loss, zhang(3, 0.1), weight_tolerance=1e-5)
    value = np.sqrt(np.linalg.norm(GAMMA_INVERSE))
    true = np.hypot(result.limit.w_pv[3, 3] - value, np.linalg.norm(diagonal(result.limit) - GAMMA_INVERSE / value)) / np.hypot(
        value, value
    )
    assert true / 3 < result.estimated_weight_error < 3 * true


def test_the_same_flow_twice_is_equal_to_the_bit(loss):
    a, b = (training.gradient_flow(loss, zhang(3, 0.1)) for _ in range(2))
    assert np.array_equal(a.limit.w_kq, b.limit.w_kq)
    assert np.array_equal(a.trajectory.losses, b.trajectory.losses)


def test_a_flow_cut_and_resumed_from_its_checkpoint_ends_at_the_same_limit(loss, tmp_path, monkeypatch):
    path = tmp_path / "flow.npz"
    whole = training.gradient_flow(loss, zhang(3, 0.1))
    with monkeypatch.context() as patch:
        # Killed in its second segment: the checkpoint of the first is on disk.
        patch.setattr(driver, "SEGMENT_BYTES", 1)
        calls = []

        def killed(*args, original=driver.Flows._advance, **settings):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(1)
            return original(*args, **settings)

        patch.setattr(driver.Flows, "_advance", killed)
        with pytest.raises(KeyboardInterrupt):
            training.gradient_flow(loss, zhang(3, 0.1), checkpoint=path)
    assert path.exists()
    resumed = training.gradient_flow(loss, zhang(3, 0.1), checkpoint=path)
    assert resumed.resumed
    assert not whole.resumed
    assert not path.exists()
    np.testing.assert_allclose(resumed.limit.w_kq, whole.limit.w_kq, atol=1e-7)


def test_complex_weights_flow_against_the_conjugate_gradient():
    """L = 1/2 |a - c|^2 flows straight to c: a(t) = c + (a0 - c) exp(-t)."""

    class Quadratic(Objective):
        task: LinearRegression
        model: LinearSelfAttention

        def __call__(self, weights, key=None):
            return 0.5 * jnp.sum(jnp.abs(weights - (2.0 + 1.0j)) ** 2)

        def risk(self, weights):
            return 2 * float(self(weights))

        def standard_error(self, weights):
            return 0.0

    objective = Quadratic(LinearRegression(dim=2, context_length=2), LinearSelfAttention())
    result = training.gradient_flow(objective, np.array([1.0 - 1.0j]), times=[1.0], stop_at_last_time=True)
    expected = (2 + 1j) + (-1 - 2j) * np.exp(-1.0)
    np.testing.assert_allclose(result.trajectory.weights[0], [expected], rtol=1e-8)


@pytest.mark.default_precision
def test_flow_runs_in_float64_without_a_scope_and_leaves_the_default_alone(loss):
    result = training.gradient_flow(loss, zhang(3, 0.1))
    assert result.limit.w_kq.dtype == np.float64
    assert result.converged
    assert jnp.ones(1).dtype == jnp.float32


def test_bad_arguments_are_refused(loss):
    with pytest.raises(InvalidValueError, match="`solver` must be one of"):
        training.gradient_flow(loss, zhang(3, 0.1), solver="euler")
    with pytest.raises(InvalidValueError, match="`times` must be finite and increase"):
        training.gradient_flow(loss, zhang(3, 0.1), times=[1.0, 0.5])
    with pytest.raises(InvalidValueError, match="`stop_at_last_time` needs `times`"):
        training.gradient_flow(loss, zhang(3, 0.1), stop_at_last_time=True)
    with pytest.raises(NonFiniteError, match="must be finite"):
        training.gradient_flow(loss, LSAWeights(np.full((4, 4), np.nan), np.ones((4, 4))))
