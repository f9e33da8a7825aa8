r"""The time course of gradient flow on one layer of linear self-attention, in closed form where it has one.

Setting: x ~ N(0, Lambda), w ~ N(0, Omega), label noise of variance s2, N examples, structured weights W_PV = u e e^T (e the
last unit vector) and W_KQ = blockdiag(U, 0). With D = Lambda Omega Lambda and C = (1 + 1/N) D + (tau/N) Lambda, tau the
variance of a label, gradient flow of *half* the mean squared error is

    dU/dt = u D - u^2 C U Lambda,        du/dt = <U, D> - u <U, C U Lambda>.

That half sets the clock. Starts are balanced, u(0) = sigma = ||U(0)||_F, where nothing else is said.

Source: arXiv 2306.09927, Lemma 5.2, is Omega = I, s2 = 0; arXiv 2501.16265, equation (10), the isotropic noiseless time course.
The rest is the lab's own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.integrate
from jaxtyping import Float

from icl_lab.core.errors import AssumptionError
from icl_lab.core.typing import Array
from icl_lab.theory.regression import lsa, structured
from icl_lab.theory.regression.problem import Problem

RTOL = 1e-12
# Distance from the saddle at zero from which its unstable manifold is followed; the error is of its square.
NEAR_SADDLE = 1e-6
SETTLED_GROWTH = 1e-8
ISOTROPIC = 1e-12
"""Largest relative distance from a multiple of the identity that counts as rounding."""


def signal(covariance: Float[Array, "d d"], task_covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The matrix D = Lambda Omega Lambda, along which weights leave the saddle at zero."""
    return covariance @ task_covariance @ covariance


def flow(
    problem: Problem, u: float, inner: Float[Array, "d d"], times: Float[Array, "S"]
) -> tuple[Float[Array, "S"], Float[Array, "S d d"]]:
    """(u, U) at increasing times >= 0, by integrating `structured.general_velocity` (DOP853, relative accuracy about 1e-11).

    Args:
      problem: the regression problem.
      u: corner of W_PV at the start.
      inner: (d, d), U at the start; the two need not be balanced.
      times: (S,).
    """
    start = np.concatenate([[u], inner.ravel()])
    solution = scipy.integrate.solve_ivp(
        _flat_velocity(problem),
        (0.0, float(times[-1])),
        start,
        method="DOP853",
        t_eval=times,
        rtol=RTOL,
        atol=RTOL * 1e-2 * np.linalg.norm(start),
    )
    return solution.y[0], solution.y[1:].T.reshape(-1, *inner.shape)


def logistic(problem: Problem, times: Float[Array, "S"], sigma: float) -> Float[Array, "S"]:
    r"""The square z = u^2 along the isotropic flow from U(0) = sigma I / sqrt d, a logistic curve.

    .. math:: z(t) = \frac{z_\infty}{1 + (z_\infty/\sigma^2 - 1)\,e^{-2\sqrt d\,\omega\lambda^2 t}}, \quad
              z_\infty = \frac{\sqrt d\,\omega\lambda}{c}, \quad
              c = (1+\tfrac1N)\,\omega\lambda^2 + (d\omega\lambda + s_2)\,\tfrac{\lambda}{N}

    The prediction is then z / sqrt d times x_q^T b / N, b = sum_i y_i x_i.

    Args:
      problem: the regression problem, with Lambda = lambda I and Omega = omega I.
      times: (S,).
      sigma: initial scale.

    Raises:
      AssumptionError: a covariance is not a multiple of the identity.

    Source: arXiv 2501.16265, equation (10), for lambda = omega = 1 and s2 = 0.
    """
    rate, final = _logistic_rate_and_limit(problem)
    return final / (1 + (final / sigma**2 - 1) * np.exp(-rate * np.asarray(times)))


def logistic_half_time(problem: Problem, sigma: float) -> float:
    r"""The time at which `logistic` reaches half its limit, ln(z_inf / sigma^2 - 1) / (2 sqrt(d) omega lambda^2).

    Negative for a start above the half.

    Args:
      problem: the regression problem, with Lambda = lambda I and Omega = omega I.
      sigma: initial scale.

    Raises:
      AssumptionError: a covariance is not a multiple of the identity.
    """
    rate, final = _logistic_rate_and_limit(problem)
    return float(np.log(final / sigma**2 - 1) / rate)


def logistic_loss(problem: Problem, z: Float[Array, "S"]) -> Float[Array, "S"]:
    r"""Half the risk along the isotropic flow, (lambda/2)(d omega - 2 sqrt(d) omega lambda z + c z^2).

    Args:
      problem: the regression problem, with Lambda = lambda I and Omega = omega I.
      z: (S,), u^2, from `logistic`.

    Returns:
      (S,).

    Raises:
      AssumptionError: a covariance is not a multiple of the identity.
    """
    dim, scale, task_scale, curvature = _isotropic(problem)
    return scale / 2 * (dim * task_scale - 2 * np.sqrt(dim) * task_scale * scale * z + curvature * z**2)


def _logistic_rate_and_limit(problem: Problem) -> tuple[float, float]:
    """The rate 2 sqrt(d) omega lambda^2 and the limit z_inf of `logistic`."""
    dim, scale, task_scale, curvature = _isotropic(problem)
    return 2 * np.sqrt(dim) * task_scale * scale**2, np.sqrt(dim) * task_scale * scale / curvature


def _isotropic(problem: Problem) -> tuple[int, float, float, float]:
    """d, lambda, omega and c of a problem with Lambda = lambda I, Omega = omega I and so C = c I; others are refused."""
    covariances = problem.covariance, problem.task_covariance
    if any(np.linalg.norm(each - each[0, 0] * np.eye(problem.dim)) > ISOTROPIC * np.linalg.norm(each) for each in covariances):
        raise AssumptionError("Both covariances must be multiples of the identity for a logistic curve; use `flow` for others.")
    scale, task_scale, curvature = (float(each[0, 0]) for each in (*covariances, lsa.response_moment(problem)))
    return problem.dim, scale, task_scale, curvature


def linear_phase(
    times: Float[Array, "S"], sigma: float, theta: Float[Array, "d d"], drive: Float[Array, "d d"]
) -> Float[Array, "S"]:
    r"""u on the plateau, where cubic terms do not matter yet (relative error of order sigma^2 exp(2 ||D|| t)).

    .. math:: u(t) = \sigma\left[\tfrac{1+\cos\vartheta}{2} e^{\|D\|_F t} + \tfrac{1-\cos\vartheta}{2} e^{-\|D\|_F t}\right],
              \qquad \cos\vartheta = \langle\Theta\Theta^\top, D\rangle / \|D\|_F

    Args:
      times: (S,).
      sigma: initial scale.
      theta: (d, d), Theta Theta^T, of unit Frobenius norm.
      drive: (d, d), D.
    """
    norm = np.linalg.norm(drive)
    cosine = np.sum(theta * drive) / norm
    grown = np.exp(norm * np.asarray(times))
    return sigma * ((1 + cosine) / 2 * grown + (1 - cosine) / 2 / grown)


def plateau_time(problem: Problem, sigma: float, theta: Float[Array, "d d"], fraction: float) -> float:
    r"""The time at which u reaches a fraction of its limit ||B*||_F^{1/2}, up to terms of order sigma.

    .. math:: T = \frac{\ln(1/\sigma) - \ln\frac{1+\cos\vartheta}{2}}{\|D\|_F} + T_0

    T_0 belongs to the unstable manifold of the saddle and is found by integrating along it.

    Args:
      problem: the regression problem.
      sigma: initial scale.
      theta: (d, d), Theta Theta^T of unit Frobenius norm.
      fraction: between 0 and 1.
    """
    drive = signal(problem.covariance, problem.task_covariance)
    norm = float(np.linalg.norm(drive))
    level = fraction * np.sqrt(np.linalg.norm(lsa.optimal_preconditioner(problem)))

    def above(_: float, state: np.ndarray) -> float:
        return state[0] - level

    above.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    start = NEAR_SADDLE * np.concatenate([[1.0], drive.ravel() / norm])
    solution = scipy.integrate.solve_ivp(
        _flat_velocity(problem), (0.0, np.inf), start, "DOP853", events=above, rtol=RTOL, atol=RTOL * NEAR_SADDLE
    )
    offset = float(solution.t_events[0][0]) - np.log(1 / NEAR_SADDLE) / norm
    return float((np.log(1 / sigma) - np.log((1 + np.sum(theta * drive) / norm) / 2)) / norm + offset)


def drop_value(problem: Problem) -> float:
    r"""u at the end of the drop if weights moved along D only: (||D||_F^3 / <D, C D Lambda>)^{1/2}.

    A larger u is reached in the tail, mode by mode.

    Args:
      problem: the regression problem.
    """
    drive = signal(problem.covariance, problem.task_covariance)
    pull = lsa.response_moment(problem) @ drive @ problem.covariance
    return float(np.sqrt(np.linalg.norm(drive) ** 3 / np.sum(drive * pull)))


def overshoot(
    sigma: float, spectrum: Float[Array, "d"], noise_variance: float, context_length: int, end: float
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    r"""How far each eigenmode of u U exceeds its limit on the way, for Omega = I and U(0) = sigma I / sqrt d.

    Modes leave the plateau with sizes in proportion to the eigenvalues of D and end with sizes in the reverse order, so that
    the large ones overshoot. The eigenmodes k_i of U obey dk_i/dt = u d_i - u^2 c_i l_i k_i.

    Args:
      sigma: initial scale.
      spectrum: (d,), eigenvalues l_i of Lambda.
      noise_variance: s2.
      context_length: N.
      end: time up to which the maximum is taken, late enough for the slowest mode.

    Returns:
      (d,) max_t u k_i over its limit, 1 for a mode that never exceeds it, and (d,) first times at 90 % of the limit.
    """
    problem = Problem(np.diag(spectrum), np.eye(len(spectrum)), noise_variance, context_length)
    drive = spectrum**2
    pull = np.diag(lsa.response_moment(problem)) * spectrum
    limit = drive / pull

    def rates(_: float, state: np.ndarray) -> np.ndarray:
        u, modes = state[0], state[1:]
        return np.concatenate([[modes @ (drive - u * pull * modes)], u * drive - u**2 * pull * modes])

    def growth(mode: int) -> Callable[[float, np.ndarray], float]:
        def of(t: float, state: np.ndarray) -> float:
            change = rates(t, state)
            # The threshold, far below what moves a peak, keeps a settled mode's rounding from crossing zero.
            return change[0] * state[1 + mode] + state[0] * change[1 + mode] - SETTLED_GROWTH * limit[mode]

        of.direction = -1  # pyright: ignore[reportFunctionMemberAccess]
        return of

    def arrival(mode: int) -> Callable[[float, np.ndarray], float]:
        return lambda t, state: state[0] * state[1 + mode] - 0.9 * limit[mode]

    count = len(spectrum)
    events = [growth(mode) for mode in range(count)] + [arrival(mode) for mode in range(count)]
    start = sigma * np.concatenate([[1.0], np.full(count, count**-0.5)])
    solution = scipy.integrate.solve_ivp(
        rates, (0.0, end), start, method="LSODA", events=events, rtol=RTOL, atol=RTOL * 1e-2 * sigma
    )
    at_maxima = [np.reshape(states, (-1, count + 1)) for states in solution.y_events[:count]]
    peaks = [max([1.0, *(states[:, 0] * states[:, 1 + i] / limit[i])]) for i, states in enumerate(at_maxima)]
    return np.array(peaks), np.array([times[0] for times in solution.t_events[count:]])


def slow_mode_time(large: float, small: float, noise_variance: float, context_length: int, low: float, high: float) -> float:
    r"""Time that the weak one of two modes takes between two fractions of its limit, the strong one having settled.

    .. math:: \dot B_2 = l_2^2\left(1 - \gamma_2 B_2\right)\sqrt{B_1^2 + B_2^2}\left(1 + \frac{B_2^2}{2B_1^2 + B_2^2}\right),
              \qquad B_1 = 1/\gamma_1

    for Lambda = diag(l_1, l_2), l_2 much below l_1, Omega = I and a balanced start; gamma_i l_i is the eigenvalue of C. The
    integral of 1 / (dB_2/dt), of order 1 / l_2^2.

    Args:
      large, small: l_1 and l_2.
      noise_variance: s2.
      context_length: N.
      low, high: the fractions, 0 <= low < high < 1.
    """
    spectrum = np.array([large, small])
    moment = lsa.response_moment(Problem(np.diag(spectrum), np.eye(2), noise_variance, context_length))
    settled, limit = spectrum / np.diag(moment)

    def slowness(b: float) -> float:
        return 1 / (small**2 * (1 - b / limit) * np.hypot(settled, b) * (1 + b**2 / (2 * settled**2 + b**2)))

    return float(scipy.integrate.quad(slowness, low * limit, high * limit, epsabs=0, epsrel=1e-12)[0])


def frozen_value(problem: Problem, times: Float[Array, "S"], u: float, inner: Float[Array, "d d"]) -> Float[Array, "S d d"]:
    r"""U along the flow of W_KQ alone, u held fixed: a linear equation.

    .. math:: U(t) = \frac{B^*}{u} + Q\left[e^{-u^2 c_i l_j t}\circ Q^\top\!\left(U(0) - \frac{B^*}{u}\right)\!P\right]P^\top,
              \qquad C = Q\operatorname{diag}(c)Q^\top,\quad \Lambda = P\operatorname{diag}(l)P^\top

    Args:
      problem: the regression problem; nothing has to commute.
      times: (S,).
      u: the fixed corner of W_PV, not 0.
      inner: (d, d), U(0).

    Raises:
      AssumptionError: u = 0, where nothing moves.
    """
    if u == 0:
        raise AssumptionError("`u` must not be 0: a layer whose value is zero gives W_KQ no gradient.")
    c, left = np.linalg.eigh(lsa.response_moment(problem))
    values, right = np.linalg.eigh(problem.covariance)
    limit = lsa.optimal_preconditioner(problem) / u
    decay = np.exp(-(u**2) * np.multiply.outer(np.asarray(times), np.outer(c, values)))
    return limit + left @ (decay * (left.T @ (inner - limit) @ right)) @ right.T


def _flat_velocity(problem: Problem) -> Callable[[float, np.ndarray], np.ndarray]:
    """`structured.general_velocity` of a state (u, U) that is one vector, as scipy wants it."""

    def rates(_: float, state: np.ndarray) -> np.ndarray:
        du, inner = structured.general_velocity(problem, state[0], state[1:].reshape(problem.dim, problem.dim))
        return np.concatenate([[du], inner.ravel()])

    return rates
