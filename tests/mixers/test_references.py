"""Mixers against another program's outputs, and errors planted in the mixers that this comparison must see."""

import inspect
from pathlib import Path

import numpy as np
import pytest

from icl_lab import mixers
from icl_lab.mixers import base
from icl_lab.mixers.maps import softmax
from icl_lab.mixers.recurrent import delta, dplr, linear, matrix_state, mesa, vector_state

FILE = Path(__file__).parent.parent / "references" / "mixers_seed11.npz"
COMPUTED = (
    *("linear", "retention", "scalar_decay", "gla", "hgrn2", "rwkv6"),
    *("deltanet", "gated_deltanet", "kda", "dplr", "mesa", "hgrn", "softmax", "forgetting"),
)
LATER = {"linear_normalized_exp", "parallax", "softmax_window8", "taylor2_normalized"}


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), pytest.param(np.float32, 2e-4, marks=pytest.mark.slow)])
def test_every_form_gives_the_outputs_of_the_other_program(dtype, tolerance):
    errors = mixers.compare_references(FILE, dtype)
    assert {case for case, found in errors.items() if found is None} == LATER
    assert {case for case, found in errors.items() if found is not None} == set(COMPUTED)
    assert all(errors[case] <= tolerance for case in COMPUTED), errors


def excerpt(folder, case, tokens=20, **changed):
    """A file with the first outputs of one case, which do not depend on later tokens."""
    with np.load(FILE) as file:
        arrays = {name: file[name] for name in file.files if "/" not in name}
        outputs = file[f"{case}/o"]
    path = folder / "excerpt.npz"
    cut = {name: x[:, :tokens] if x.ndim > 2 else x for name, x in (arrays | {f"{case}/o": outputs} | changed).items()}
    np.savez(path, **cut)
    return path


def test_the_error_is_relative_to_the_largest_entry_and_a_nan_is_no_agreement(tmp_path):
    with np.load(FILE) as file:
        outputs, keys = file["linear/o"], file["k"]
    shifted = outputs[:, :20].copy()
    shifted[1, 7, 0, 2] += 0.25
    path = excerpt(tmp_path, "linear", **{"linear/o": shifted})
    expected = 0.25 / np.abs(np.moveaxis(shifted, 2, 1)).max()
    np.testing.assert_allclose(mixers.compare_references(path)["linear"], expected, rtol=1e-10)
    keys = keys.copy()
    keys[0, 3, 0, 0] = np.nan
    assert not mixers.compare_references(excerpt(tmp_path, "linear", k=keys))["linear"] <= 1e-10


def plant(monkeypatch, owner, name, old, new):
    """Replace a piece of the source of a module's function, or of a class's method."""
    module = inspect.getmodule(owner)
    source = inspect.getsource(module)
    piece = inspect.getsource(getattr(owner, name))
    assert piece.count(old) == 1, f"{old!r} is not once in {name}"
    namespace = {"__name__": module.__name__}
    exec(compile(source.replace(piece, piece.replace(old, new)), module.__file__, "exec"), namespace)
    changed = vars(namespace[owner.__name__])[name] if inspect.isclass(owner) else namespace[name]
    # What is changed goes on with the classes that there are, not with their copies.
    for cell in changed.__closure__ or ():
        cell.cell_contents = owner
    namespace |= {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    monkeypatch.setattr(owner, name, changed)


PLANTED = {
    "read before the write, token by token": (
        "linear",
        (matrix_state, "run", "return state, row[0] @ state", "return state, row[0] @ (state - advance(0 * state, row[1]))"),
    ),
    "read before the write, in blocks": (
        "linear",
        (
            matrix_state,
            "block_of",
            "jnp.tril(queries @ writes.T)",
            "jnp.tril(queries @ writes.T, -1)",
        ),
    ),
    "read before the write, softmax": ("softmax", (softmax, "masked_logits", "<=", "<")),
    "decay after the write, token by token": (
        "scalar_decay",
        (
            matrix_state,
            "advance",
            "token.writes[:, None] * missing[None, :]",
            "token.writes[:, None] * missing[None, :] * jnp.exp(token.log_decay)",
        ),
    ),
    "decay after the read, in blocks": (
        "gla",
        (matrix_state, "block_of", "decayed(queries, since)", "decayed(queries, one_later(since))"),
    ),
    "the state between blocks does not decay": (
        "gla",
        (matrix_state, "advance_block", "state * along_keys(block.left, state)", "state"),
    ),
    "a block's writes do not decay to its end": (
        "scalar_decay",
        (matrix_state, "block_of", "decayed(writes, until)", "writes"),
    ),
    "the halves of a block do not decay to their boundary": (
        "scalar_decay",
        (matrix_state, "products_under_decay", "decayed(writes[0], until[0])", "writes[0]"),
    ),
    "the later half of a block does not decay from its start": (
        "gla",
        (matrix_state, "products_under_decay", "decayed(queries[1], since[1])", "queries[1]"),
    ),
    "an error in a block is taken after its token's own decay once more": (
        "kda",
        (matrix_state, "products_under_decay", "decayed(probes[1], one_later(since[1]))", "decayed(probes[1], since[1])"),
    ),
    "a token of a block does not see what the last one cancelled": (
        "deltanet",
        (matrix_state, "block_of", "queries - answers[:, width:]", "queries"),
    ),
    "written rows of a block are mixed with the wrong sign": (
        "deltanet",
        (matrix_state, "_inverses", "-both[1] @", "both[1] @"),
    ),
    "scale forgotten": ("linear", (base.Mixer, "_prepared", "queries * jnp.asarray(scale, dtype)", "queries")),
    "error taken at the key before": (
        "deltanet",
        (delta.DeltaRule, "updates", "decay, probes)", "decay, jnp.roll(probes, 1, 0))"),
    ),
    "no error taken: a plain write": (
        "deltanet",
        (delta.DeltaRule, "updates", "decay, probes)", "decay)"),
    ),
    "error taken before the decay": (
        "kda",
        (delta.DeltaRule, "updates", "keys if decay is None else keys * along_keys(jnp.exp(decay), keys)", "keys"),
    ),
    "write strength forgotten": (
        "deltanet",
        (delta.DeltaRule, "updates", "step.astype(keys.dtype)[:, None] * keys.conj()", "keys.conj()"),
    ),
    "keys not tied to what is forgotten": (
        "hgrn2",
        (linear.HGRN2, "updates", "jax.nn.sigmoid(-logits)", "jax.nn.sigmoid(logits)"),
    ),
    "read after the write": (
        "rwkv6",
        (linear.RWKV6, "mix", "[queries[:1] @ start, earlier[:-1]]", "[earlier]"),
    ),
    "the newest pair without its bonus": (
        "rwkv6",
        (linear.RWKV6, "mix", "self._with_bonus(keys.conj())", "keys.conj()"),
    ),
    "read: the newest token decays what it reads": (
        "rwkv6",
        (linear.RWKV6, "answer", ".at[-1].set(0)", ""),
    ),
    "feedback from the state that has decayed": (
        "dplr",
        (dplr.DPLR, "updates", '-gates["probe"]', '-jnp.exp(decay) * gates["probe"]'),
    ),
    "feedback of the token's own write": (
        "dplr",
        (dplr.DPLR, "updates", "jnp.zeros_like(values), values", "values, jnp.zeros_like(values)"),
    ),
    "read between the feedback and the write": ("dplr", (dplr.DPLR, "mix", "outputs[1::2]", "outputs[::2]")),
    "one decay of a retention too many": (
        "retention",
        (linear.Retention, "updates", "jnp.full(keys.shape[:1], decay)", "jnp.full(keys.shape[:1], 2 * decay)"),
    ),
    "read: a key's write is not removed by later ones": (
        "deltanet",
        (matrix_state, "read_weights", "weight * probe", "0 * probe"),
    ),
    "read: each value decays once too often": ("gla", (matrix_state, "read_weights", "left[1:]", "left[:-1]")),
    "mesa: the penalty is forgotten": (
        "mesa",
        (mesa.SolvingMixer, "penalised", "gram(rows) + penalty", "gram(rows) + 0 * penalty"),
    ),
    "mesa: pairs do not fade": ("mesa", (mesa.SolvingMixer, "grams", 'gates.get("log_decay")', "None")),
    "mesa: the Gram matrix takes no weights": (
        "mesa",
        (mesa.SolvingMixer, "mix", "advance(state.gram, grams)", "advance(state.gram, grams._replace(writes=grams.values))"),
    ),
    "mesa: queries of a block are solved with the Gram matrix before it": (
        "mesa",
        (mesa.SolvingMixer, "mix", "lambda x: advance_block(state.gram, block_of(x, grams))[1]", "lambda x: x @ state.gram"),
    ),
    "mesa: nothing is solved": ("mesa", (mesa.Mesa, "step", "solve(queries)", "queries")),
    "mesa: read without the write strengths": (
        "mesa",
        (mesa.SolvingMixer, "answer", "self.grams(keys, gates)", "self.grams(keys, {'log_decay': gates['log_decay']})"),
    ),
    "hgrn: what is written is kept": ("hgrn", (vector_state.HGRN, "alone", "nn.softplus(keys)", "nn.softplus(-keys)")),
    "hgrn: blocks start from nothing": (
        "hgrn",
        (vector_state.VectorStateMixer, "mix", "(None, 0, 0))(state", "(None, 0, 0))(0 * state"),
    ),
    "hgrn: read without the decay after a pair": ("hgrn", (vector_state.HGRN, "answer", "left[1:] *", "left[:-1] *")),
    "stream: earlier sums do not shrink": ("softmax", (softmax, "streamed", "total * shrink", "total")),
}


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_seen(monkeypatch, tmp_path, error):
    case, change = PLANTED[error]
    plant(monkeypatch, *change)
    found = mixers.compare_references(excerpt(tmp_path, case))[case]
    assert not found <= 1e-3


def test_nothing_planted_nothing_seen(monkeypatch, tmp_path):
    plant(monkeypatch, matrix_state, "advance", "missing = ", "missing = ")
    assert mixers.compare_references(excerpt(tmp_path, "kda"))["kda"] <= 1e-10
