import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks import (
    EMBEDDINGS,
    Prompt,
    embedding,
    hankel,
    interleaved,
    merged,
    paired,
    paired_short,
    series,
)

# (N, d, k, seed); three shapes, since each compiles
SIZES = st.tuples(st.sampled_from([(1, 1, 1), (3, 2, 1), (2, 3, 2)]), st.integers(0, 10**6)).map(lambda t: (*t[0], t[1]))


def random_prompt(count, dim, label_dim, seed):
    draw = np.random.default_rng(seed).standard_normal
    return Prompt(draw((count, dim)), draw((count, label_dim)), draw(dim), draw(label_dim))


@given(sizes=SIZES)
def test_merged_tokens_give_the_prompt_back(sizes):
    count, dim, label_dim, _ = sizes
    prompt = random_prompt(*sizes)
    tokens = np.asarray(merged(prompt))
    assert tokens.shape == (count + 1, dim + label_dim)
    np.testing.assert_array_equal(tokens[:-1, :dim], prompt.inputs)
    np.testing.assert_array_equal(tokens[:-1, dim:], prompt.labels)
    np.testing.assert_array_equal(tokens[-1], np.concatenate([prompt.query, np.zeros(label_dim)]))


def test_merged_takes_a_query_label():
    prompt = random_prompt(2, 3, 2, seed=0)
    tokens = merged(prompt, jnp.array([5.0, -1.0]))
    np.testing.assert_array_equal(tokens[-1, 3:], [5.0, -1.0])
    np.testing.assert_array_equal(tokens[:, :3], merged(prompt)[:, :3])


@given(sizes=SIZES)
def test_interleaved_tokens_give_the_prompt_back(sizes):
    count, dim, label_dim, _ = sizes
    prompt = random_prompt(*sizes)
    tokens = np.asarray(interleaved(prompt))
    assert tokens.shape == (2 * count + 1, dim + label_dim)
    np.testing.assert_array_equal(tokens[0:-1:2, :dim], prompt.inputs)
    np.testing.assert_array_equal(tokens[1::2, dim:], prompt.labels)
    np.testing.assert_array_equal(tokens[-1, :dim], prompt.query)
    assert not np.any(tokens[0::2, dim:])
    assert not np.any(tokens[1::2, :dim])


@given(sizes=SIZES, data=st.data())
def test_permuting_the_examples_permutes_the_tokens(sizes, data):
    prompt = random_prompt(*sizes)
    order = np.array(data.draw(st.permutations(range(sizes[0]))))
    permuted = Prompt(prompt.inputs[order], prompt.labels[order], prompt.query, prompt.target)
    np.testing.assert_array_equal(merged(permuted)[:-1], np.asarray(merged(prompt))[order])
    both = np.stack([2 * order, 2 * order + 1], axis=1).reshape(-1)
    np.testing.assert_array_equal(interleaved(permuted)[:-1], np.asarray(interleaved(prompt))[both])


@pytest.mark.parametrize("order", [1, 3])
def test_hankel_rows_are_windows_of_the_series_in_time_order(order):
    values = np.arange(1.0, order + 6)  # n = p + 5
    windows = np.stack([values[i : i + order] for i in range(5)])
    prompt = Prompt(windows, values[order:, None], values[5:], np.zeros(1))
    np.testing.assert_array_equal(series(prompt), values)
    padded = np.append(values, 0.0)
    np.testing.assert_array_equal(hankel(prompt), np.stack([padded[i : i + order + 1] for i in range(6)]))
    # The lag windows and their labels, merged, are the same rows.
    np.testing.assert_array_equal(hankel(prompt), merged(prompt))


def test_paired_tokens_hold_each_state_and_its_predecessor(rng):
    states = rng.standard_normal((4, 2)) + 1j * rng.standard_normal((4, 2))
    prompt = Prompt(states[:-1], states[1:], states[-1], states[0])
    tokens = np.asarray(paired(prompt))
    assert tokens.shape == (4, 6)
    assert tokens.dtype == np.complex128
    assert not np.any(tokens[:, :2])
    np.testing.assert_array_equal(tokens[:, 2:4], states)
    np.testing.assert_array_equal(tokens[:, 4:], np.concatenate([np.zeros((1, 2)), states[:-1]]))
    np.testing.assert_array_equal(paired_short(prompt), tokens[:, 2:])


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings_are_found_by_name_and_survive_jit_and_vmap(name):
    prompts = [random_prompt(3, 2, 2 if "paired" in name else 1, seed) for seed in range(4)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *prompts)
    tokens = jax.jit(jax.vmap(embedding(name)))(stacked)
    for prompt, rows in zip(prompts, tokens, strict=True):
        np.testing.assert_array_equal(rows, embedding(name)(prompt))


def test_misfits_are_refused_by_name():
    vector_labels = random_prompt(3, 2, 2, seed=1)
    with pytest.raises(InvalidValueError, match=r"`hankel` embeds scalar series, .* these have dimension 2"):
        hankel(vector_labels)
    with pytest.raises(InvalidValueError, match=r"`paired` embeds sequences of states.* dimensions 1 and 2"):
        paired(random_prompt(3, 2, 1, seed=1))
    with pytest.raises(
        InvalidValueError, match="one of merged, interleaved, positioned, sinusoidal, hankel, paired, paired_short; got 'mergd'"
    ):
        embedding("mergd")
