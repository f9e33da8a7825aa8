"""Mamba against the differential equation that it solves, and against the stick that it breaks."""

import numpy as np
import pytest
from scipy.linalg import expm

from icl_lab import mixers
from icl_lab.core.errors import InvalidValueError
from tests.mixers.sequences import K, V, draw_prompt, error


@pytest.mark.parametrize("rate", [1.0, 0.3, np.linspace(0.2, 3.0, K)], ids=["one", "slow", "a rate a channel"])
def test_a_token_solves_the_differential_equation_for_the_time_of_its_step(rate):
    prompt = draw_prompt(0, count=12)
    steps = np.random.default_rng(1).uniform(0.0, 4.0, 12)
    rates, state = np.broadcast_to(rate, (K,)), np.zeros((K, V))
    for key, value, step in zip(prompt.inputs, prompt.labels, steps, strict=True):
        for c, v in np.ndindex(K, V):
            # dS/dt = -a S + k v, with the constant as a second coordinate.
            generator = np.array([[-rates[c], key[c] * value[v]], [0.0, 0.0]])
            state[c, v] = (expm(step * generator) @ [state[c, v], 1.0])[0]
    mamba = mixers.predictor("mamba", rate=rate, step=steps, scale=1.0)
    assert error(mamba(prompt), state.T @ prompt.query) <= 1e-12
    queries = np.broadcast_to(prompt.query, prompt.inputs.shape)
    for form in mixers.FORMS:
        _, last = mamba.mixer.outputs_and_state(queries, prompt.inputs, prompt.labels, form=form, chunk=5, step=steps)
        assert error(last, state) <= 1e-12, form


@pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])
def test_a_step_that_is_a_softplus_breaks_pieces_off_a_stick(complex_data):
    prompt = draw_prompt(2, count=15, complex_data=complex_data)
    logits = np.random.default_rng(3).normal(size=15)
    broken = 1 / (1 + np.exp(-logits))
    pieces = [broken[i] * np.prod(1 - broken[i + 1 :]) for i in range(15)]
    expected = sum(g * np.vdot(x, prompt.query) * y for g, x, y in zip(pieces, prompt.inputs, prompt.labels, strict=True))
    mamba = mixers.predictor("mamba", step=np.log1p(np.exp(logits)), scale=1.0)
    assert error(mamba(prompt), expected) <= 1e-12
    # Equal keys and values of 1 are answered by all pieces together; what is left of the stick is the rest.
    same = np.zeros((15, K)), np.ones((15, 1))
    same[0][:, 0] = 1.0
    total = mamba.mixer.read(np.eye(K)[0], *same, **mamba.gates)[0]
    assert abs(total + np.prod(1 - broken) - 1) <= 1e-14


@pytest.mark.parametrize(
    ("dim", "count", "risk"),
    [(5, 20, 1.1886903601545908), (3, 8, 1.0257123458449242), (10, 40, 2.223442624662681)],
)
def test_a_step_that_halves_the_state_in_a_context_has_the_lag_weights_that_its_risk_needs(dim, count, risk):
    mamba = mixers.named("mamba", scale=1.0)
    keys = np.zeros((count, dim))
    keys[:, 0] = 1.0
    weights = np.asarray(mamba.read(np.eye(dim)[0], keys, np.eye(count), step=np.log(2) / count))
    kept = 2 ** (-1 / count)
    assert error(weights, (1 - kept) * kept ** np.arange(count)[::-1]) <= 1e-12
    # Of all multiples of sum_i c_i (q.x_i) (w.x_i), Gaussian x_i and q, the best is this far from w.q.
    first, second = np.sum(weights), np.sum(weights**2)
    assert dim * (dim + 1) * second / (first**2 + (dim + 1) * second) == pytest.approx(risk, rel=1e-12)


def test_short_steps_are_those_of_mamba_2():
    prompt = draw_prompt(4)
    distances = []
    for step in (1e-3, 1e-4):
        long = mixers.predictor("simple_gla", log_decay=-2.0 * step, scale=step)(prompt)
        distances.append(error(mixers.predictor("mamba", rate=2.0, step=step, scale=1.0)(prompt), long))
    # (1 - exp(-a s)) / (a s) = 1 - a s / 2 + ..
    np.testing.assert_allclose(distances, [1e-3, 1e-4], rtol=1e-2)


def test_rates_that_do_not_decay_or_do_not_fit_are_refused():
    for rate in (0.0, -1.0, np.inf, np.array([1.0, 0.0])):
        with pytest.raises(InvalidValueError, match="`rate` must be finite and > 0, because the state decays"):
            mixers.named("mamba", rate=rate)
    prompt = draw_prompt(5)
    with pytest.raises(InvalidValueError, match=r"`rate` must be one number or one a key channel, \(6,\); got shape \(4,\)"):
        mixers.predictor("mamba", rate=np.ones(4), step=0.1)(prompt)
