"""What every mixer of the registry must do: forms, gradients, causality, reading, states, symmetries, and refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import mixers
from icl_lab.core.errors import IclLabError, InvalidValueError, NonFiniteError
from tests.mixers.sequences import ALL, K, constant_gates, draw, draw_prompt, error, value_width

# Their steps are those of retention, gla, kda and deltanet, and claims run them in every form.
TWINS = ("simple_gla", "hgrn2", "gated_deltanet", "longhorn")
every_mixer = pytest.mark.parametrize(
    "mixer",
    [
        pytest.param(mixer, id=name, marks=() if name in mixers.MIXERS and name not in TWINS else pytest.mark.slow)
        for name, mixer in ALL.items()
    ],
)
LENGTHS = (pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(16, marks=pytest.mark.slow), 33)
CHUNKS = (1, 8, 16)


def runs(mixer, chunks=(8,)):
    """The forms to compare, "recurrent" first: keyword arguments."""
    found = [{"form": form} for form in mixer.description.forms if form != "chunk"]
    return found + [{"form": "chunk", "chunk": size} for size in chunks if "chunk" in mixer.description.forms]


def test_the_registry_has_every_mixer_under_its_own_name():
    assert all(mixer.name == name for name, mixer in mixers.MIXERS.items())
    for mixer in ALL.values():
        assert mixer.description.forms[0] == "recurrent"
        assert mixer.description.signature <= mixers.SYMMETRIES.keys()
        assert mixer.description.order_sensitive == ("permute_pairs" not in mixer.description.signature)


@pytest.mark.parametrize("length", LENGTHS)
@every_mixer
def test_forms_agree(mixer, length):
    tokens, gates = draw(mixer, length)
    forms = runs(mixer, CHUNKS)
    first, *others = jax.jit(lambda t, g: [mixer.outputs_and_state(*t, **run, **g) for run in forms])(tokens, gates)
    for run, other in zip(forms[1:], others, strict=True):
        assert error(other, first) <= 1e-10, run


def outputs_and_gradients(mixer, tokens, gates, forms):
    """For each form the outputs, and the gradients of one random sum of them in tokens and gates."""
    weights = np.random.default_rng(2).normal(size=tokens[2].shape)

    def results(tokens, gates):
        for form in forms:
            outputs, pull = jax.vjp(lambda t, g, form=form: mixer.outputs(*t, **form, **g), tokens, gates)
            yield outputs, pull(jnp.asarray(weights))

    return jax.jit(lambda t, g: list(results(t, g)))(tokens, gates)


@pytest.mark.parametrize("chunk", [8, pytest.param(16, marks=pytest.mark.slow)])
@every_mixer
def test_gradients_are_finite_and_those_of_the_recurrence(mixer, chunk):
    forms = runs(mixer, (chunk,))
    first, *others = outputs_and_gradients(mixer, *draw(mixer, 33, seed=1), forms)
    for form, other in zip(forms[1:], others, strict=True):
        assert error(other, first) <= 1e-8, form


@pytest.mark.parametrize("name", [name for name, mixer in ALL.items() if mixer.description.gates])
def test_forms_and_gradients_stand_gates_at_the_ends_of_their_ranges(name):
    mixer = ALL[name]
    tokens, gates = draw(mixer, 20, seed=3)
    # A gate without any bound has no end.
    for gate in (gate for gate in mixer.description.gates if np.isfinite([gate.lowest, gate.highest]).any()):
        # A sum over all tokens would lose every other decay beside 1e18, and its exponential turned round would overflow.
        gates[gate.name][[3, 4, 11]] = -1e18 if gate.lowest == -np.inf else gate.lowest
        gates[gate.name][[5, 17]] = 1e18 if gate.highest == np.inf else gate.highest
    first, *others = outputs_and_gradients(mixer, tokens, gates, runs(mixer))
    for form, other in zip(runs(mixer)[1:], others, strict=True):
        assert error(other, first) <= 1e-8, form


@every_mixer
def test_output_t_depends_on_tokens_up_to_t_itself_included(mixer):
    assert mixer.description.causal
    before, after = draw(mixer, 20, seed=4), draw(mixer, 20, seed=5)
    run = jax.jit(lambda t, g: [mixer.outputs(*t, **form, **g) for form in runs(mixer)])
    expected = run(*before)
    for position in (1, 8, 19):
        changed = jax.tree.map(lambda a, b, p=position: np.concatenate([a[:p], b[p:]]), before, after)
        for got, want in zip(run(*changed), expected, strict=True):
            assert error(got[:position], want[:position]) <= 1e-14
        # The pair of token t is in output t: only its value changes.
        queries, keys, values = before[0]
        moved = values.copy()
        moved[position] += 1.0
        for got, want in zip(run((queries, keys, moved), before[1]), expected, strict=True):
            assert error(got[position], want[position]) > 1e-6


@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(33, marks=pytest.mark.slow)])
@every_mixer
def test_read_is_the_last_output(mixer, length):
    (queries, keys, values), gates = draw(mixer, length, seed=6)
    earlier = draw(mixer, 5, seed=7)

    def results(gates, earlier):
        _, start = mixer.outputs_and_state(*earlier[0], form="parallel", **earlier[1])
        for initial in (None, start):
            outputs = mixer.outputs(queries, keys, values, form="recurrent", initial=initial, **gates)
            yield mixer.read(queries[-1], keys, values, initial=initial, **gates), outputs[-1]

    for answer, last in jax.jit(lambda *arguments: list(results(*arguments)))(gates, earlier):
        assert error(answer, last) <= 1e-10


@every_mixer
def test_the_last_state_continues_the_sequence_and_has_its_size(mixer):
    tokens, gates = draw(mixer, 33, seed=8)
    halves = [jax.tree.map(lambda x, part=part: x[part], (tokens, gates)) for part in (slice(0, 12), slice(12, None))]

    def results(whole, first, second):
        def of(run):
            outputs, state = mixer.outputs_and_state(*first[0], **run, **first[1])
            more, last = mixer.outputs_and_state(*second[0], **run, initial=state, **second[1])
            return mixer.outputs_and_state(*whole[0], **run, **whole[1]), (jnp.concatenate([outputs, more]), last)

        return [of(run) for run in runs(mixer)]

    for once, twice in jax.jit(results)((tokens, gates), *halves):
        assert error(twice, once) <= 1e-10
        assert sum(leaf.size for leaf in jax.tree.leaves(once[1])) == mixer.description.state_size(33, K, value_width(mixer))


@every_mixer
def test_float32_is_near_float64(mixer):
    tokens, gates = draw(mixer, 33, seed=9)
    narrow = jax.tree.map(lambda x: x.astype(np.float32), (tokens, gates))
    run = jax.jit(lambda t, g: [mixer.outputs(*t, **form, **g) for form in runs(mixer)] + [mixer.read(t[0][-1], *t[1:], **g)])
    for got, want in zip(run(*narrow), run(tokens, gates), strict=True):
        assert got.dtype == np.float32
        assert error(got, want) <= 2e-4


@every_mixer
def test_the_signature_is_the_one_described(mixer):
    predict = mixers.Predictor(mixer, constant_gates(mixer))
    assert mixers.signature(predict, draw_prompt(width=value_width(mixer)), jax.random.key(1)) == mixer.description.signature


@every_mixer
def test_scaling_all_tokens_scales_the_output_by_the_degree(mixer):
    tokens, gates = draw(mixer, 7, seed=10)
    doubled = np.asarray(mixer.outputs(*(2.0 * x for x in tokens), **gates)[-1])
    ratios = np.log2(np.abs(doubled / np.asarray(mixer.outputs(*tokens, **gates)[-1])))
    if mixer.description.degree is None:
        assert np.ptp(ratios) > 0.01
    else:
        np.testing.assert_allclose(ratios, mixer.description.degree, atol=1e-10)


def arrays_with_two_token_axes(function, count, *arguments):
    """Shapes that hold `count` twice, or the number of steps if a token takes two, among all arrays that a program computes."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.shape for variable in equation.outvars if hasattr(variable.aval, "shape"))
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else [value]:
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from walk(inner)

    program = jax.make_jaxpr(function)(*arguments).jaxpr
    return {shape for shape in walk(program) if sum(size in (count, count + 1, 2 * count, 2 * count + 1) for size in shape) > 1}


@every_mixer
def test_no_array_of_read_or_of_a_linear_form_has_two_token_axes(mixer):
    tokens, gates = draw(mixer, 29, seed=11)
    fixed_state = mixer.description.state_size(29, K, value_width(mixer)) == mixer.description.state_size(
        58, K, value_width(mixer)
    )
    programs = [(lambda t, g: mixer.read(t[0][-1], *t[1:], **g), True)]
    # Differentiated, a stream of keys keeps a number for each query and block.
    for form in runs(mixer):
        if form["form"] != "parallel":
            programs.append((lambda t, g, f=form: mixer.outputs(*t, **f, **g), fixed_state))
    for program, differentiated in programs:
        assert not arrays_with_two_token_axes(program, 29, tokens, gates)
        if differentiated:
            total = lambda t, g, p=program: jnp.sum(p(t, g))  # noqa: E731
            assert not arrays_with_two_token_axes(jax.grad(total), 29, tokens, gates)
    parallel = lambda t, g: mixer.outputs(*t, form="parallel", **g)  # noqa: E731
    # Channels on their own are scanned; all others have a matrix of pairs.
    assert bool(arrays_with_two_token_axes(parallel, 29, tokens, gates)) != mixer.description.channelwise


@every_mixer
def test_heads_batches_and_numbers_as_gates(mixer):
    whole = [draw(mixer, 7, seed=seed) for seed in (12, 13)]
    batch = jax.tree.map(lambda *x: np.stack(x), *whole)
    outputs = jax.vmap(lambda t, g: mixer.outputs(*t, chunk=4, **g))(*batch)
    for got, (tokens, gates) in zip(outputs, whole, strict=True):
        assert error(got, mixer.outputs(*tokens, **gates)) <= 1e-10
    tokens, gates = whole[0]
    full = {name: np.full_like(gates[name], value) for name, value in constant_gates(mixer).items()}
    assert error(mixer.outputs(*tokens, **constant_gates(mixer)), mixer.outputs(*tokens, **full)) == 0.0


@every_mixer
def test_a_query_for_every_two_pairs_is_every_second_query(mixer):
    (queries, keys, values), gates = draw(mixer, 14, seed=16)

    def results(gates):
        for form in runs(mixer, (5,)):
            yield mixer.outputs_and_state(queries[1::2], keys, values, **form, **gates)
            outputs, state = mixer.outputs_and_state(queries, keys, values, **form, **gates)
            yield outputs[1::2], state

    found = jax.jit(lambda g: list(results(g)))(gates)
    for got, want in zip(found[::2], found[1::2], strict=True):
        assert error(got, want) <= 1e-12


@every_mixer
def test_bad_tokens_and_arguments_are_refused_in_one_sentence(mixer):
    (q, k, v), gates = draw(mixer, 7, seed=14)
    none = {name: x[:0] for name, x in gates.items()}
    refusals = [
        ("at least one token", lambda: mixer.outputs(q[:0], k[:0], v[:0], **none)),
        ("at least one token", lambda: mixer.read(q[0], k[:0], v[:0], **none)),
        ("as many values as keys", lambda: mixer.read(q[0], k, v[:-1], **gates)),
        ("as many queries as keys", lambda: mixer.outputs(q[:-1], k, v, **gates)),
        ("as wide as the queries", lambda: mixer.outputs(q, k[:, :-1], v, **gates)),
        ("as wide as the queries", lambda: mixer.read(q[0, :-1], k, v, **gates)),
        ("One query is read", lambda: mixer.read(q, k, v, **gates)),
        ("one head of one sequence", lambda: mixer.outputs(q[None], k[None], v[None], **gates)),
        ("`form` must be one of recurrent", lambda: mixer.outputs(q, k, v, form="flash", **gates)),
        ("`chunk` must be an integer >= 1; got 0", lambda: mixer.outputs(q, k, v, chunk=0, **gates)),
        ("`initial` must be the", lambda: mixer.outputs(q, k, v, initial=np.zeros((2, 2)), **gates)),
        (f"{mixer.name} takes the gates", lambda: mixer.outputs(q, k, v, forget=0.1, **gates)),
        ("`scale` must be finite", lambda: type(mixer)(scale=np.inf)),
    ]
    for words, call in refusals:
        with pytest.raises(InvalidValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


@every_mixer
def test_bad_gates_are_refused_by_name(mixer):
    (q, k, v), gates = draw(mixer, 7, seed=15)
    for gate in mixer.description.gates:
        bad = [(value, "NaN or infinite") for value in (np.nan, -np.inf, np.inf)]
        outside = {gate.highest: gate.highest + 0.01, gate.lowest: gate.lowest - 0.01}
        bad += [(value, f"must be {re.escape(gate.bounds)}") for end, value in outside.items() if np.isfinite(end)]
        for value, words in bad:
            entry = gates[gate.name].copy()
            entry.flat[-1] = value
            for call in (
                lambda entry=entry, gate=gate: mixer.outputs(q, k, v, **gates | {gate.name: entry}),
                lambda entry=entry, gate=gate: mixer.read(q[0], k, v, **gates | {gate.name: entry}),
                lambda value=value, gate=gate: mixers.Predictor(mixer, constant_gates(mixer) | {gate.name: value}),
            ):
                with pytest.raises(IclLabError, match=f"`{gate.name}` .*{words}") as caught:
                    call()
                assert isinstance(caught.value, InvalidValueError | NonFiniteError)
        with pytest.raises(InvalidValueError, match=f"`{gate.name}` must be one number or have the shape"):
            mixer.outputs(q, k, v, **gates | {gate.name: gates[gate.name][:-1]})
        with pytest.raises(InvalidValueError, match="takes the gates"):
            mixer.outputs(q, k, v, **{name: x for name, x in gates.items() if name != gate.name})


def test_a_range_reads_as_its_finite_ends():
    ranges = {"<= 0": (-np.inf, 0.0), "in [0, 1]": (0.0, 1.0), ">= 0": (0.0, np.inf), "finite": (-np.inf, np.inf)}
    for words, (lowest, highest) in ranges.items():
        assert mixers.Gate("gate", lowest, highest, "it is one").bounds == words


def test_names_and_parameters_that_do_not_exist_are_refused_with_the_accepted_ones():
    with pytest.raises(InvalidValueError, match=r"No mixer is called 'lstm'; choose one of .*deltanet.*softmax"):
        mixers.predictor("lstm", size=3)
    with pytest.raises(InvalidValueError, match=r"`linear` takes the parameters \['scale'\]"):
        mixers.named("linear", decay=0.1)
    with pytest.raises(InvalidValueError, match=r"needs the gates \['write_strength'\]; got \[\]"):
        mixers.predictor("deltanet")
    with pytest.raises(InvalidValueError, match=r"`write_strength` must be in \[0, 1\].*got 1.5"):
        mixers.predictor("deltanet", write_strength=1.5)
    mixers.predictor("deltanet", write_strength=1.5, negative_eigenvalues=True)
    with pytest.raises(InvalidValueError, match="`log_decay` must be finite and <= 0"):
        mixers.named("retention", log_decay=0.1)
