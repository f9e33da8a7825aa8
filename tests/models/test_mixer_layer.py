"""Layers round every mixer of the registry: the query alone against all tokens, what is written when, shapes, gates, cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import mixers
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import GateMap, Layered, LearnerModule, LinearSelfAttention, LSAWeights, MixerLayer, MixerWeights
from icl_lab.models.gates import in_range, raw_value
from tests.models.attention_reference import random_prompt, shapes_in

N, DIM, LABELS = 4, 3, 2
WIDTH = DIM + LABELS
every_mixer = pytest.mark.parametrize("name", mixers.MIXERS)


def draw(name, data_dependent=True, heads=2, seed=0, width=WIDTH, **sizes):
    mixer = mixers.named(name)
    sizes = {"key_width": 4, "value_width": 4 if mixer.description.channelwise else 3} | sizes
    layer = MixerLayer(mixer)
    return MixerWeights.init(jax.random.key(seed), width, layer, 0.4, heads=heads, data_dependent=data_dependent, **sizes)


def written_out(mixer, weights, tokens, query_in_sum):
    """What the layer adds to every token, by the mixer's read alone, token by token and head by head."""
    update = np.zeros_like(tokens)
    for t in range(len(tokens)):
        known = tokens[: min(t + 1, len(tokens) - (not query_in_sum))]
        for h in range(len(weights.w_q)):
            gates = {}
            for gate in mixer.description.gates:
                own = weights.gates[gate.name]
                raw = (
                    own.bias[h]
                    + (0.0 if own.slope is None else known @ own.slope[h].T)
                    + np.zeros((len(known), 4) if gate.per_channel else len(known))
                )
                low, high = gate.lowest, gate.highest
                share = 1 / (1 + np.exp(-raw))
                if high == -low == np.inf:
                    gates[gate.name] = raw
                elif np.inf in (-low, high):
                    gates[gate.name] = high + np.log(share) if low == -np.inf else low - np.log(1 - share)
                else:
                    gates[gate.name] = low + (high - low) * share
            read = mixer.read(weights.w_q[h] @ tokens[t], known @ weights.w_k[h].T, known @ weights.w_v[h].T, **gates)
            update[t] += weights.w_o[h] @ np.asarray(read)
    return update


@pytest.mark.parametrize(("data_dependent", "query_in_sum"), [(False, True), (True, False)])
@every_mixer
def test_every_token_reads_what_is_written_up_to_it(rng, name, data_dependent, query_in_sum):
    mixer, weights = mixers.named(name), draw(name, data_dependent)
    model = Layered(MixerLayer(mixer, query_in_sum=query_in_sum))
    prompt = random_prompt(rng, N, DIM, LABELS)
    tokens = np.asarray(model.tokens(prompt))
    expected = tokens + written_out(mixer, weights, tokens, query_in_sum)
    np.testing.assert_allclose(model.apply(weights, tokens), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(model(weights, prompt), expected[-1, DIM:], rtol=1e-10, atol=1e-12)


@every_mixer
def test_the_last_of_two_layers_needs_only_the_query_and_gradients_are_finite(rng, name):
    model, layers = Layered(MixerLayer(mixers.named(name))), (draw(name), draw(name, heads=1, seed=1))
    prompt = random_prompt(rng, N, DIM, LABELS)
    np.testing.assert_allclose(
        model(layers, prompt), model.apply(layers, model.tokens(prompt))[-1, DIM:], rtol=1e-10, atol=1e-12
    )
    gradients = jax.jit(jax.grad(lambda w: jnp.sum(model(w, prompt))))(layers)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))
    # The gates of the first layer, whose every output is read, are trained.
    assert all(np.all(own.bias != 0) for own in gradients[0].gates.values())


@pytest.mark.parametrize("name", ["deltanet", "gla", "softmax"])
def test_no_array_of_one_layer_has_two_token_axes(name):
    prompt = random_prompt(np.random.default_rng(0), 29, DIM, LABELS)
    model, weights = Layered(MixerLayer(mixers.named(name))), draw(name)
    shapes = shapes_in(jax.make_jaxpr(model)(weights, prompt))
    assert not {shape for shape in shapes if sum(size in (29, 30) for size in shape) > 1}


def test_the_answer_to_a_query_costs_no_more_than_a_read_of_every_pair():
    weights = draw("deltanet")
    model = Layered(MixerLayer(mixers.named("deltanet")))

    def flops(count):
        prompt = random_prompt(np.random.default_rng(0), count, DIM, LABELS)
        return jax.jit(model).lower(weights, prompt).cost_analysis()["flops"]

    small, middle, large = flops(64), flops(128), flops(256)
    assert (large - middle) / (middle - small) == pytest.approx(2.0, rel=0.01)


def test_gates_start_where_they_are_asked_to_and_stay_in_their_ranges():
    mixer = mixers.named("kda", negative_eigenvalues=True)
    weights = MixerWeights.init(jax.random.key(0), WIDTH, MixerLayer(mixer), 0.1, heads=2, gates={"write_strength": 1.7})
    strength, decay = mixer.description.gates
    (weight,) = mixers.named("longhorn").description.gates
    np.testing.assert_allclose(in_range(weights.gates["write_strength"].bias, strength), [1.7, 1.7], rtol=1e-14)
    np.testing.assert_allclose(in_range(weights.gates["log_decay"].bias, decay), np.full((2, WIDTH), -0.02), rtol=1e-12)
    assert weights.gates["log_decay"].slope is None
    raw = np.array([-800.0, -30.0, 0.0, 30.0, 800.0])
    for gate in (strength, decay, weight):
        values = np.asarray(in_range(raw, gate))
        assert np.all((values >= gate.lowest) & (values <= gate.highest))
        assert np.all(np.diff(values) >= 0)
        np.testing.assert_allclose(raw_value(float(values[2]), gate), 0.0, atol=1e-14)
    probe = mixers.named("dplr").description.gates[1]
    np.testing.assert_array_equal(in_range(raw, probe), raw)
    assert raw_value(-3.7, probe) == -3.7
    for value in (1e-12, 1.0, 1e6):
        np.testing.assert_allclose(in_range(np.asarray(raw_value(value, weight)), weight), value, rtol=1e-12)


def test_draws_are_of_the_scale_and_of_the_key_alone():
    weights = draw("gla", heads=30, key_width=40)
    again = draw("gla", heads=30, key_width=40)
    jax.tree.map(np.testing.assert_array_equal, weights, again)
    for name in ("w_q", "w_k", "w_v", "w_o"):
        # 1,800 entries or more: the standard deviation of their standard deviation is below 0.007.
        assert np.std(getattr(weights, name)) == pytest.approx(0.4, abs=0.03)
    assert weights.gates["log_decay"].slope.shape == (30, 40, WIDTH)


@every_mixer
def test_a_layer_makes_the_round_trip_through_flax(rng, name):
    model, weights = Layered(MixerLayer(mixers.named(name))), (draw(name), draw(name, False))
    module = LearnerModule(model, weights, param_dtype=jnp.float64)
    jax.tree.map(np.testing.assert_array_equal, module.to_weights(), weights)
    prompt = random_prompt(rng, N, DIM, LABELS)
    np.testing.assert_allclose(module(prompt), model(weights, prompt), rtol=1e-14)


def test_float32_weights_give_float32_answers_and_complex_prompts_are_taken(rng):
    model = Layered(MixerLayer(mixers.named("gated_deltanet")))
    weights = draw("gated_deltanet")
    narrow = jax.tree.map(lambda x: x.astype(np.float32), (weights, random_prompt(rng, N, DIM, LABELS)))
    answer = model(*narrow)
    assert answer.dtype == np.float32
    complex_prompt = random_prompt(rng, N, DIM, LABELS, np.complex128)
    assert np.all(np.isfinite(model(weights, complex_prompt)))


def test_weights_that_do_not_fit_are_named():
    prompt = random_prompt(np.random.default_rng(0), N, DIM, LABELS)
    good = draw("gla")
    model = Layered(MixerLayer(mixers.named("gla")))
    refusals = [
        (
            "the weights of layer 0 must be `MixerWeights`, which its layer takes; got LSAWeights",
            LSAWeights(np.eye(5), np.eye(5)),
        ),
        (r"`gates` of layer 0 must be \['log_decay'\], those of gla; got \['write_strength'\]", draw("deltanet")),
        (r"`w_q` of layer 0 must be \(2, 4, 5\).*got shape \(2, 4, 6\)", draw("gla", width=WIDTH + 1)),
        (
            r"`gates.log_decay.bias` of layer 0 must be \(2, 4\).*got shape \(2,\)",
            dataclasses.replace(good, gates={"log_decay": GateMap(np.zeros(2))}),
        ),
    ]
    for words, weights in refusals:
        with pytest.raises(InvalidValueError, match=words):
            model(weights, prompt)
    with pytest.raises(InvalidValueError, match="the weights of layer 0 must be `LSAWeights`"):
        LinearSelfAttention()(good, prompt)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"heads": 0}, "`heads`"),
        ({"key_width": -1}, "`key_width`"),
        ({"value_width": -1}, "`value_width`"),
        ({"scale": 0.0}, "`scale`"),
        ({"gates": {"forget": 0.1}}, r"takes the gates \['write_strength'\]"),
        ({"gates": {"write_strength": 1.5}}, r"`write_strength` must be in \[0, 1\]"),
        ({"gates": {"write_strength": 1.0}}, "strictly between 0 and 1"),
    ],
)
def test_starts_that_do_not_exist_are_refused(arguments, words):
    scale = arguments.pop("scale", 0.1)
    with pytest.raises(InvalidValueError, match=words):
        MixerWeights.init(jax.random.key(0), WIDTH, MixerLayer(mixers.named("deltanet")), scale, **arguments)


def _written_out_with_options(layer, weights, tokens):
    """What a layer of one head with all options adds to every token, a token, a write and a tap at a time."""
    taps = layer.convolution

    def projected(name, t):
        matrix, kernel = getattr(weights, name)[0], weights.taps[name][0]
        total = 0.0
        for c in range(taps):
            if t - (taps - 1 - c) >= 0:
                total = total + kernel[..., c] * (matrix @ tokens[t - (taps - 1 - c)])
        rows = total / (1 + np.exp(-total))
        return rows if name == "w_v" else rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    update = np.zeros_like(tokens)
    for t in range(len(tokens)):
        state = np.zeros((weights.w_k.shape[-2], weights.w_v.shape[-2]))
        for i in range(min(t + 1, len(tokens) - (not layer.query_in_sum))):
            keys, values = projected("w_k", i), projected("w_v", i)
            gate = weights.gates["write_strength"]
            strengths = 1 / (1 + np.exp(-gate.bias[0] - (0.0 if gate.slope is None else gate.slope[0] @ tokens[i])))
            for key, value, strength in zip(keys, values, strengths, strict=True):
                state = state + strength * np.outer(key, value - key @ state)
        read = layer.mixer.scale * projected("w_q", t) @ state
        update[t] = weights.w_o[0] @ (read / np.sqrt(np.mean(read**2)))
    return update


@pytest.mark.parametrize(("data_dependent", "query_in_sum"), [(False, True), (True, False)])
def test_several_writes_convolution_and_norms_are_what_they_say(rng, data_dependent, query_in_sum):
    layer = MixerLayer(
        mixers.named("deltanet", scale=0.7),
        query_in_sum=query_in_sum, writes=3, convolution=2, unit_keys=True, output_norm=True,
    )  # fmt: skip
    sizes = {"key_width": 4, "value_width": 3, "data_dependent": data_dependent}
    weights = MixerWeights.init(jax.random.key(0), WIDTH, layer, 0.4, **sizes)
    noise = {name: taps + 0.3 * rng.normal(size=taps.shape) for name, taps in weights.taps.items()}
    weights = dataclasses.replace(weights, taps=noise)
    model, prompt = Layered(layer), random_prompt(rng, N, DIM, LABELS)
    tokens = np.asarray(model.tokens(prompt))
    expected = tokens + _written_out_with_options(layer, weights, tokens)
    # The squares of lengths have 1e-12 added to them.
    np.testing.assert_allclose(model.apply(weights, tokens), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(model(weights, prompt), expected[-1, DIM:], rtol=1e-8, atol=1e-9)


FEW = ("deltanet", "ttt", "mesa", "mamba", "hgrn", "softmax")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in mixers.MIXERS])
def test_every_mixer_writes_several_pairs_and_stands_behind_a_convolution(rng, name):
    mixer = mixers.named(name)
    layer = MixerLayer(mixer, writes=2, convolution=3, unit_keys=True, output_norm=True)
    sizes = {"heads": 2, "key_width": 4, "value_width": 4 if mixer.description.channelwise else 3, "data_dependent": True}
    weights, prompt = MixerWeights.init(jax.random.key(0), WIDTH, layer, 0.4, **sizes), random_prompt(rng, N, DIM, LABELS)
    model = Layered(layer)
    whole = model.apply(weights, model.tokens(prompt))[-1, DIM:]
    np.testing.assert_allclose(model(weights, prompt), whole, rtol=1e-10, atol=1e-12)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(model(w, prompt))))(weights)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert all(np.any(taps != 0) for taps in gradient.taps.values())


def test_a_convolution_starts_at_the_token_itself():
    layer = MixerLayer(mixers.named("linear"), convolution=3)
    weights = MixerWeights.init(jax.random.key(0), WIDTH, layer, 0.4)
    np.testing.assert_array_equal(weights.taps["w_k"], np.broadcast_to([0.0, 0.0, 1.0], (1, WIDTH, 3)))


@pytest.mark.parametrize(("option", "message"), [({"writes": 0}, "`writes`"), ({"convolution": -1}, "`convolution`")])
def test_sizes_of_options_are_checked(option, message):
    with pytest.raises(InvalidValueError, match=message):
        MixerLayer(mixers.named("linear"), **option)
