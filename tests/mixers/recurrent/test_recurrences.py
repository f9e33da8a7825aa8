"""Mixers with several matrices or several writes a token against closed forms: sums and products of matrices, written out."""

import jax
import numpy as np
import pytest

from icl_lab import mixers
from icl_lab.core.errors import InvalidValueError
from icl_lab.mixers.recurrent import descent
from tests.mixers.sequences import K, draw, draw_prompt, error
from tests.mixers.test_common import runs
from tests.mixers.test_references import plant

N = 14


def all_forms(mixer, tokens, gates, initial=None):
    """The last output of each form, and what `read` says: names and outputs (V,)."""

    def results(tokens, gates, initial):
        for form in runs(mixer, (5,)):
            yield mixer.outputs(*tokens, initial=initial, **form, **gates)[-1]
        yield mixer.read(tokens[0][-1], *tokens[1:], initial=initial, **gates)

    return jax.jit(lambda *arguments: list(results(*arguments)))(tokens, gates, initial)


def products_after(factors):
    """For each t the product of the matrices of all later tokens, the last one leftmost."""
    after = [np.eye(len(factors[0]))]
    for factor in factors[:0:-1]:
        after.append(after[-1] @ factor)
    return after[::-1]


def worst(mixer, tokens, gates, matrix):
    """The largest error of all forms and of `read`, for the state that there should be at the last read."""
    expected = (K**-0.5 if mixer.scale is None else mixer.scale) * tokens[0][-1] @ matrix
    return max(error(got, expected) for got in all_forms(mixer, tokens, gates))


def test_hgrn2_keeps_weighted_means_of_the_values():
    for bound in (0.0, 0.4):
        mixer = mixers.named("hgrn2", lower_bound=bound)
        (queries, keys, values), _ = draw(mixer, N, seed=20)
        kept = bound + (1 - bound) / (1 + np.exp(-keys))
        weights = np.array([(1 - kept[i]) * np.prod(kept[i + 1 :], axis=0) for i in range(N)])
        assert worst(mixer, (queries, keys, values), {}, weights.T @ values) <= 1e-12
        # Together with what is left of the start the weights of a row sum to 1.
        _, state = mixer.outputs_and_state(queries, keys, np.ones((N, 1)), initial=np.ones((K, 1)))
        np.testing.assert_allclose(state, 1.0, rtol=1e-13)
    # Logits at which a share is 0 or 1 up to rounding.
    _, state = mixers.named("hgrn2").outputs_and_state(queries, np.full((N, K), -800.0), values)
    assert error(state, np.broadcast_to(values[-1], state.shape)) == 0.0
    assert np.all(mixers.named("hgrn2").outputs(queries, np.full((N, K), 800.0), values) == 0.0)


@pytest.mark.parametrize("bonus", [0.0, np.linspace(-1.0, 2.0, K)], ids=["none", "a channel"])
def test_rwkv6_reads_the_earlier_pairs_under_the_decays_between_and_its_own_with_the_bonus(bonus):
    mixer = mixers.named("rwkv6", bonus=bonus, scale=0.7)
    (queries, keys, values), gates = draw(mixer, N, seed=21)
    kept = np.exp(gates["log_decay"])
    matrix = np.outer(bonus * keys[-1], values[-1])
    for i in range(N - 1):
        matrix += np.outer(keys[i] * np.prod(kept[i + 1 : N - 1], axis=0), values[i])
    assert worst(mixer, (queries, keys, values), gates, matrix) <= 1e-12


def test_dplr_multiplies_the_state_by_a_diagonal_plus_a_rank_one_matrix():
    mixer = mixers.named("dplr")
    (queries, keys, values), gates = draw(mixer, N, seed=22)
    factors = [
        np.diag(np.exp(g)) + np.outer(b, a)
        for g, a, b in zip(gates["log_decay"], gates["probe"], gates["feedback"], strict=True)
    ]
    pairs = zip(products_after(factors), keys, values, strict=True)
    assert worst(mixer, (queries, keys, values), gates, sum(p @ np.outer(k, v) for p, k, v in pairs)) <= 1e-12


def test_dplr_without_feedback_is_gla_and_with_that_of_the_error_it_is_kda():
    tokens, gates = draw(mixers.named("kda"), N, seed=23)
    queries, keys, values = tokens
    strength, decay = gates["write_strength"][:, None], gates["log_decay"]
    low_rank = {"log_decay": decay, "probe": -np.exp(decay) * keys, "feedback": strength * keys}
    forms = all_forms(mixers.named("dplr"), (queries, strength * keys, values), low_rank)
    assert max(error(got, mixers.named("kda").outputs(*tokens, **gates)[-1]) for got in forms) <= 1e-12
    forms = all_forms(mixers.named("dplr"), tokens, low_rank | {"feedback": np.zeros(K)})
    assert max(error(got, mixers.named("gla").outputs(*tokens, log_decay=decay)[-1]) for got in forms) <= 1e-12


def momentum_error():
    """The state and the step as one matrix of twice the height, that each token multiplies by a matrix of blocks."""
    mixer = mixers.named("momentum_delta", scale=1.0)
    (queries, keys, values), gates = draw(mixer, N, seed=24)
    matrix = np.zeros((2 * K, values.shape[1]))
    for k, v, beta, mu in zip(keys, values, gates["write_strength"], np.exp(gates["log_momentum"]), strict=True):
        again, square = mu * np.eye(K), beta * np.outer(k, k)
        matrix = np.block([[np.eye(K) - square, again], [-square, again]]) @ matrix + np.tile(beta * np.outer(k, v), (2, 1))
    return worst(mixer, (queries, keys, values), gates, matrix[:K])


def batched_error():
    """Each mini-batch at once, as a sum of gradients at the state before it."""
    mixer = mixers.named("ttt", scale=1.0)
    (queries, keys, values), gates = draw(mixer, N, seed=25)
    matrix = np.zeros((K, values.shape[1]))
    for first in range(0, N, 4):
        batch = slice(first, first + 4)
        gradient = keys[batch].T @ (gates["write_strength"][batch, None] * (keys[batch] @ matrix - values[batch]))
        matrix = matrix - gradient
    return worst(mixer, (queries, keys, values), gates, matrix)


def test_momentum_is_a_linear_recurrence_of_the_state_and_its_step():
    assert momentum_error() <= 1e-12


def test_a_mini_batch_is_one_gradient_step():
    assert batched_error() <= 1e-12


@pytest.mark.parametrize("complex_data", [False, True], ids=["real", "complex"])
def test_momentum_and_mini_batches_lie_between_mixers_that_there_are(complex_data):
    prompt = draw_prompt(26, count=N, complex_data=complex_data)
    strength = np.linspace(0.2, 0.6, N)
    predictors = {"deltanet": {}, "momentum_delta": {"log_momentum": -1e18}, "ttt": {"batch": 1}}
    delta, *others = (
        mixers.predictor(name, write_strength=strength, scale=1.0, **own)(prompt) for name, own in predictors.items()
    )
    assert max(error(got, delta) for got in others) <= 1e-12
    written = mixers.named("linear", scale=1.0).read(prompt.query, strength[:, None] * prompt.inputs, prompt.labels)
    for batch in (N, N + 1):
        whole = mixers.predictor("ttt", write_strength=strength, batch=batch, scale=1.0)
        assert error(whole(prompt), written) <= 1e-12
    # A momentum of 1 takes every step again: N times the first one after N tokens of which only the first writes.
    first = mixers.predictor("momentum_delta", write_strength=np.eye(N)[0], log_momentum=0.0, scale=1.0)
    alone = mixers.named("deltanet", scale=1.0).read(prompt.query, prompt.inputs[:1], prompt.labels[:1], write_strength=1.0)
    assert error(first(prompt), N * alone) <= 1e-12


PLANTED = {
    momentum_error: {
        "the new step is not added whole": (
            descent,
            "_moving_token",
            "Moving(state.matrix + step, step)",
            "Moving(state.matrix + state.step, step)",
        ),
        "error taken after the old step": (descent, "_moving_token", "key @ state.matrix", "key @ (state.matrix + state.step)"),
        "the step before a block is forgotten": (descent, "_moving_block", "multiples[0] * state.step", "0"),
        "the step before a block is taken once too often": (descent, "_moving_block", "jnp.zeros_like(left[:1])", "left[:1]"),
        "read: the step does not move the state": (descent.MomentumDelta, "answer", "rows.matrix + rows.step", "rows.matrix"),
    },
    batched_error: {
        "every error at the newest state, token by token": (
            descent,
            "_batched_token",
            "jnp.where(begins, matrix, before)",
            "matrix",
        ),
        "a batch sees itself, in blocks": (
            descent,
            "_batched_block",
            "batch[:, None] > batch[None, :]",
            "batch[:, None] >= batch[None, :]",
        ),
        "the batch that goes on sees the newest state": (
            descent,
            "_batched_block",
            "(batch == 0)[:, None]",
            "(batch < 0)[:, None]",
        ),
        "read: batches one token late": (descent.TTT, "_begins", "% self.batch == 0", "% self.batch == 1"),
    },
}


@pytest.mark.parametrize(("measure", "mistake"), [(measure, mistake) for measure in PLANTED for mistake in PLANTED[measure]])
def test_a_planted_error_is_seen(monkeypatch, measure, mistake):
    plant(monkeypatch, *PLANTED[measure][mistake])
    assert not measure() <= 1e-3


def test_mamba_2_is_a_decay_a_token_and_values_times_the_step():
    rng = np.random.default_rng(27)
    steps, rate = rng.uniform(0.1, 1.0, N), -0.7
    inputs, reads, writes = rng.normal(size=(N, 3)), rng.normal(size=(N, K)), rng.normal(size=(N, K))
    matrix = np.zeros((K, 3))
    for step, x, write in zip(steps, inputs, writes, strict=True):
        matrix = np.exp(step * rate) * matrix + step * np.outer(write, x)
    tokens = reads, writes, steps[:, None] * inputs
    assert worst(mixers.named("simple_gla", scale=1.0), tokens, {"log_decay": steps * rate}, matrix) <= 1e-12


def test_decays_of_the_heads_of_published_models():
    np.testing.assert_allclose(np.exp([mixers.retnet_log_decay(h) for h in (0, 3)]), [31 / 32, 255 / 256], rtol=1e-14)
    assert mixers.named("retention").log_decay == pytest.approx(float(mixers.retnet_log_decay(0)), rel=1e-14)
    # Of 4 heads the slopes are 1/4, 1/16, 1/64, 1/256; a third of the way up a third of them is gone.
    for layer, left in ((0, 1.0), (1, 2 / 3), (3, 0.0)):
        slopes = [-mixers.lightning_log_decay(h, 4, layer, 4) for h in range(4)]
        np.testing.assert_allclose(slopes, (left + 1e-5) * 0.25 ** np.arange(1, 5), rtol=1e-12)
    assert mixers.lightning_log_decay(7, 8, 0, 1) == pytest.approx(-(1 + 1e-5) / 256, rel=1e-12)
    for head, layer, words in ((4, 0, "`head` must be in 0 .. 3"), (0, 2, "`layer` must be in 0 .. 1")):
        with pytest.raises(InvalidValueError, match=words):
            mixers.lightning_log_decay(head, 4, layer, 2)


def test_parameters_out_of_range_are_refused_by_name():
    for name, parameters, words in (
        ("hgrn2", {"lower_bound": 1.0}, r"`lower_bound` must be in \[0, 1\).*got 1.0"),
        ("rwkv6", {"bonus": np.nan}, "`bonus` must be finite.*got nan"),
        ("ttt", {"batch": 0}, "`batch` must be an integer >= 1; got 0"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            mixers.named(name, **parameters)
    tokens, gates = draw(mixers.named("rwkv6"), N)
    with pytest.raises(InvalidValueError, match=r"`bonus` must be .*\(6,\); got shape \(2,\)"):
        mixers.named("rwkv6", bonus=np.ones(2)).outputs(*tokens, **gates)
