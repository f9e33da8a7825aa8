"""The effective preconditioner against the real model, and the comparison table against hand-made optima."""

import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab import analysis
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights, SeparateWeights, SoftmaxSelfAttention
from icl_lab.tasks.prompt import Prompt

EPS = np.finfo(np.float64).eps
SEEDS = st.integers(0, 2**31 - 1)
SCALES = st.floats(0.01, 100.0).flatmap(lambda s: st.sampled_from([s, -s]))
MODELS = {
    "zhang": LinearSelfAttention(),
    "oswald": LinearSelfAttention(query_in_sum=False, readout_sign=-1.0),
    "mahankali": LinearSelfAttention(query_in_sum=False, normaliser="none"),
}


def random_weights(seed, d=3, heads=None):
    rng = np.random.default_rng(seed)
    shape = (d + 1, d + 1) if heads is None else (heads, d + 1, d + 1)
    return LSAWeights(rng.normal(size=shape), rng.normal(size=shape))


def random_prompt(seed, n=6, d=3):
    rng = np.random.default_rng(seed)
    return Prompt(rng.normal(size=(n, d)), rng.normal(size=(n, 1)), rng.normal(size=d), np.zeros(1))


def hand_made_optimum(matrix, normaliser="context_length"):
    """Balanced structured weights with p2 K1^T = matrix, written out by hand for inputs of dimension 3."""
    size = np.sqrt(np.linalg.norm(matrix))
    w_pv, w_kq = np.zeros((4, 4)), np.zeros((4, 4))
    w_pv[3, 3], w_kq[:3, :3] = size, matrix.T / size
    length = 1 if normaliser == "context_length" else 6
    return types.SimpleNamespace(name="hand made", preconditioner=length * matrix, w_pv=w_pv, w_kq=w_kq, normaliser=normaliser)


MATRIX = np.array([[1.0, 0.3, -0.2], [0.1, 0.5, 0.4], [0.0, -0.6, 2.0]])


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("heads", [None, 2])
def test_the_effective_preconditioner_is_the_odd_part_of_the_models_prediction(name, heads):
    model, weights = MODELS[name], random_weights(1, heads=heads)
    matrix = analysis.effective_preconditioner(weights, model, context_length=6)
    for seed in range(3):
        prompt = random_prompt(seed)
        flipped = Prompt(prompt.inputs, -prompt.labels, prompt.query, prompt.target)
        odd = (np.asarray(model(weights, prompt)) - np.asarray(model(weights, flipped))) / 2
        mean = np.mean(prompt.labels * prompt.inputs, axis=0)
        np.testing.assert_allclose(prompt.query @ matrix @ mean, odd[0], rtol=1e-11)


def test_separate_weights_have_the_preconditioner_of_their_products():
    rng = np.random.default_rng(2)
    separate = SeparateWeights(*(rng.normal(size=(4, 4)) for _ in range(4)))
    merged = LSAWeights(separate.w_p @ separate.w_v, separate.w_k.T @ separate.w_q)
    one = analysis.effective_preconditioner(separate, LinearSelfAttention(), 6)
    np.testing.assert_allclose(one, analysis.effective_preconditioner(merged, LinearSelfAttention(), 6), rtol=1e-12)


@pytest.mark.parametrize("model_normaliser", ["context_length", "none"])
@pytest.mark.parametrize("normaliser", ["context_length", "none"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_optimum_itself_passes_in_every_convention_of_the_model(model_normaliser, normaliser, sign):
    optimum = hand_made_optimum(MATRIX, normaliser)
    model = LinearSelfAttention(normaliser=model_normaliser, readout_sign=sign)
    rho = {"context_length": 6, "none": 1}
    s = -2.5 * sign  # an arbitrary point of the gauge orbit
    factor = rho[model_normaliser] / rho[normaliser] * sign
    comparison = analysis.compare(
        LSAWeights(s * optimum.w_pv, factor * optimum.w_kq / s), optimum, model, context_length=6, tolerance=100 * EPS
    )
    assert comparison.passed, str(comparison)
    assert set(comparison.errors) == {"preconditioner", "w_pv", "w_kq", "p1", "k2", "even part"}
    unscaled = analysis.compare(LSAWeights(optimum.w_pv, 1.5 * factor * optimum.w_kq), optimum, model, context_length=6)
    np.testing.assert_allclose(unscaled.errors["preconditioner"], 0.5, rtol=1e-12)
    # Balanced factors share the excess: each is sqrt(1.5) of what it should be.
    np.testing.assert_allclose(unscaled.errors["w_pv"], np.sqrt(1.5) - 1, rtol=1e-12)
    assert not unscaled.passed


def test_a_transposed_preconditioner_fails():
    optimum = hand_made_optimum(MATRIX)
    w_kq = optimum.w_kq.T.copy()
    comparison = analysis.compare(LSAWeights(optimum.w_pv, w_kq), optimum)
    expected = np.linalg.norm(MATRIX - MATRIX.T) / np.linalg.norm(MATRIX)
    np.testing.assert_allclose(comparison.errors["preconditioner"], expected, rtol=1e-12)
    assert not comparison["w_kq"].passed
    assert comparison["w_pv"].passed


def test_parts_that_should_vanish_are_measured_as_shares():
    optimum = hand_made_optimum(np.eye(3))
    w_pv, w_kq = optimum.w_pv.copy(), optimum.w_kq.copy()
    u = w_pv[3, 3]
    w_pv[3, 0], w_kq[3, 1] = 0.3 * u, 0.4 * u
    errors = analysis.compare(LSAWeights(w_pv, w_kq), optimum).errors
    np.testing.assert_allclose(errors["p1"], 0.3 / np.sqrt(1.09), rtol=1e-12)
    # ||K1||_F = ||I / u||_F = u, since u^2 = ||I||_F.
    np.testing.assert_allclose(errors["k2"], 0.4 / np.sqrt(1.16), rtol=1e-12)
    # B = I + k2 p1^T, so p1, k2 of one order move the preconditioner at second order.
    np.testing.assert_allclose(errors["preconditioner"], 0.12 * u**2 / np.sqrt(3), rtol=1e-12)


def test_the_even_part_is_zero_exactly_when_the_prediction_is_odd_in_the_labels():
    model = LinearSelfAttention(query_in_sum=False)
    # Two heads whose even terms cancel although neither head's do.
    base = random_weights(3)
    w_pv, w_kq = np.stack([base.w_pv, base.w_pv]), np.stack([base.w_kq, base.w_kq])
    w_pv[1, -1, :-1] *= -1.0
    w_kq[1, -1, :-1] *= -1.0
    both = LSAWeights(w_pv, w_kq)
    prompt = random_prompt(4)
    flipped = Prompt(prompt.inputs, -prompt.labels, prompt.query, prompt.target)
    np.testing.assert_allclose(model(both, flipped), -np.asarray(model(both, prompt)), rtol=1e-11)
    optimum = hand_made_optimum(MATRIX)
    comparison = analysis.compare(both, optimum, model)
    assert set(comparison.errors) == {"preconditioner", "even part"}
    assert comparison.errors["even part"] < 10 * EPS
    assert analysis.compare(base, optimum, model).errors["even part"] > 0.1


@given(SEEDS, SCALES)
def test_the_comparison_does_not_change_along_the_gauge_orbit(seed, s):
    weights, optimum = random_weights(seed), hand_made_optimum(MATRIX)
    one = analysis.compare(weights, optimum).errors
    other = analysis.compare(LSAWeights(s * weights.w_pv, weights.w_kq / s), optimum).errors
    for name, error in one.items():
        # Shares of small parts and errors relative to a fixed optimum: rounding of the size of the weights.
        np.testing.assert_allclose(other[name], error, rtol=1e-11, err_msg=name)


def test_a_nan_never_passes():
    optimum = hand_made_optimum(MATRIX)
    w_kq = optimum.w_kq.copy()
    w_kq[0, 0] = np.nan
    comparison = analysis.compare(LSAWeights(optimum.w_pv, w_kq), optimum, tolerance=np.inf)
    assert not comparison.passed
    assert not comparison["preconditioner"].passed
    zero = analysis.compare(LSAWeights(np.zeros((4, 4)), np.zeros((4, 4))), optimum, tolerance=1.0)
    assert not zero["p1"].passed


def test_the_table_prints_measured_expected_error_and_tolerance():
    optimum = hand_made_optimum(MATRIX)
    lines = str(analysis.compare(LSAWeights(1.5 * optimum.w_pv, optimum.w_kq), optimum, tolerance=1e-3)).splitlines()
    assert lines[0] == "trained weights against hand made"
    assert lines[1].split() == ["|measured|", "|expected|", "error", "tolerance"]
    size = np.linalg.norm(MATRIX)
    assert lines[2].split() == ["preconditioner", f"{1.5 * size:.8g}", f"{size:.8g}", "0.5", "0.001", "FAILS"]
    assert lines[-1].split()[-1] == "ok"


@pytest.mark.default_precision
def test_comparisons_outside_the_float64_scope_are_in_float64():
    optimum = hand_made_optimum(MATRIX)
    comparison = analysis.compare(LSAWeights(-3.0 * optimum.w_pv, optimum.w_kq / -3.0), optimum, tolerance=100 * EPS)
    assert comparison.passed, str(comparison)


def test_other_architectures_are_refused_with_the_remedy():
    weights, optimum = random_weights(0), hand_made_optimum(MATRIX)
    for bad_weights, model in (
        (weights, SoftmaxSelfAttention()),
        (weights, LinearSelfAttention(loops=2)),
        ((weights, weights), LinearSelfAttention()),
        (weights, LinearSelfAttention(embedding="interleaved")),
    ):
        with pytest.raises(UnsupportedProblemError, match=r"one layer of linear attention.*compare_functions"):
            analysis.compare(bad_weights, optimum, model)


def test_missing_lengths_and_wrong_dimensions_are_named():
    optimum = hand_made_optimum(MATRIX)
    with pytest.raises(InvalidValueError, match="`context_length` is needed"):
        analysis.compare(random_weights(0), optimum, MODELS["mahankali"])
    with pytest.raises(InvalidValueError, match="dimension 2, but the optimum is for dimension 3"):
        analysis.compare(random_weights(0, d=2), optimum)
    with pytest.raises(InvalidValueError, match="No row is called 'w_q'"):
        analysis.compare(random_weights(0), optimum)["w_q"]


def test_jax_weights_compare_as_numpy_ones_do():
    weights, optimum = random_weights(5), hand_made_optimum(MATRIX)
    one = analysis.compare(weights, optimum).errors
    assert analysis.compare(jax.tree.map(jax.numpy.asarray, weights), optimum).errors == one
