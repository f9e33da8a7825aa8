"""Constructions as claims: they hold at values of one's own, and a wrong formula makes the right checks fail."""

import numpy as np
import pytest

from icl_lab.claims import registry, verify
from icl_lab.core.errors import AssumptionError
from icl_lab.models.constructions import copying as copying_layers
from icl_lab.models.constructions import memory
from icl_lab.theory.descent import copying, descent_variants, vonoswald2022
from tests.claims.claim_runs import failed_checks, run_claim

pytestmark = pytest.mark.claims

SIZE = {"d": 3, "k": 2, "N": 5, "distribution": "uniform", "sigma": 1.3, "seed": 7}
PLAIN = {name: value for name, value in SIZE.items() if name != "k"}
SETTINGS = {
    "vonoswald2022.prop1": SIZE,
    "vonoswald2022.datatransform": SIZE,
    "vonoswald2022.multistep": SIZE | {"K": 3},
    "vonoswald2022.readout": SIZE | {"K": 3},
    "vonoswald2022.full-attention": SIZE | {"K": 2},
    "vonoswald2022.gauge": SIZE | {"s": 0.4},
    "vonoswald2022.gdpp.construct": SIZE | {"K": 3},
    "vonoswald2022.gdpp.poly": PLAIN | {"K": 2},
    "vonoswald2022.gdpp.spectrum": PLAIN | {"gamma": [0.1, 0.2], "samples": 200},
    "vonoswald2022.prop2": SIZE | {"width": 4, "eta": 0.4, "K": 9},
    "vonoswald2022.prop3": SIZE | {"b": [2.0, 7.0]},
    "vonoswald2022.prop3.contamination": PLAIN,
    "vonoswald2022.softmax.expand": SIZE,
    "layers.ext.ridge": SIZE | {"K": 3, "lam": 0.7},
    "layers.ext.momentum": SIZE | {"K": 3, "mu": 0.8},
}


def failed(id, **changes):
    return failed_checks(run_claim(id, SETTINGS[id] | changes))


def test_the_registry_holds_these_claims():
    assert set(SETTINGS) <= set(registry.all_claims())


@pytest.mark.parametrize("id", SETTINGS)
def test_the_claim_holds(id):
    assert failed(id) == set()


@pytest.mark.parametrize("id", ["vonoswald2022.prop2", "vonoswald2022.gdpp.spectrum", "vonoswald2022.gdpp.construct"])
def test_contexts_shorter_than_the_inputs(id):
    assert failed(id, d=5, N=3) == set()


def test_a_step_of_the_summed_loss_is_caught(monkeypatch):
    right = vonoswald2022.gradient_step
    monkeypatch.setattr(vonoswald2022, "gradient_step", lambda w, x, y, eta: right(w, x, y, eta * len(x)))
    assert failed("vonoswald2022.prop1") == {"label_slots", "prediction"}
    assert failed("vonoswald2022.datatransform") == {"loss_on_moved_labels"}
    assert failed("vonoswald2022.multistep") == {"label_slots", "prediction", "prediction_of_the_loop"}
    assert failed("vonoswald2022.readout") == {"sensitivity", "sensitivity_elsewhere", "answer"}


def test_a_shift_without_its_factor_two_is_caught(monkeypatch):
    right = vonoswald2022.attended_query_shift
    monkeypatch.setattr(vonoswald2022, "attended_query_shift", lambda *of: right(*of) / 2)
    # From zero there is no shift to get wrong.
    assert failed("vonoswald2022.full-attention") == {"shift_after_one_abs"}


def test_a_transposed_key_query_matrix_is_caught(monkeypatch):
    right = vonoswald2022.attention_layer
    monkeypatch.setattr(vonoswald2022, "attention_layer", lambda tokens, w_pv, w_kq: right(tokens, w_pv, w_kq.T))
    assert failed("vonoswald2022.gauge") == {"separate", "other_basis", "scaled", "scaled_by_minus_s"}


def test_labels_moved_after_the_inputs_are_caught(monkeypatch):
    right = descent_variants.gdpp_tokens

    def one_after_the_other(initial, inputs, labels, query, etas, gammas):
        slots = labels
        for eta, gamma in zip(etas, gammas, strict=True):
            none, step = np.zeros(1), np.array([eta])
            moved, _ = right(initial, inputs, labels, query, none, np.array([gamma]))
            inputs, query = moved[:-1], moved[-1]
            _, slots = right(initial, inputs, labels, query, step, none)
            labels = slots[:-1]
        return np.vstack([inputs, query[None]]), slots

    monkeypatch.setattr(descent_variants, "gdpp_tokens", one_after_the_other)
    assert failed("vonoswald2022.gdpp.construct") == {"labels", "prediction"}


def test_a_curvature_of_the_mean_gram_matrix_is_caught(monkeypatch):
    right = descent_variants.gdpp_polynomials
    monkeypatch.setattr(descent_variants, "gdpp_polynomials", lambda s, etas, gammas, n: right(s, etas, gammas / n, n))
    assert failed("vonoswald2022.gdpp.poly") == {"inputs", "labels", "prediction"}


def test_a_degree_that_doubles_is_caught(monkeypatch):
    monkeypatch.setattr(descent_variants, "gdpp_degree", lambda layers: 2**layers - 1)
    assert failed("vonoswald2022.gdpp.poly") == {"degree"}


def test_a_spectrum_without_its_cubic_term_is_caught(monkeypatch):
    monkeypatch.setattr(descent_variants, "gdpp_eigenvalue", lambda s, gamma: np.abs(s - 2 * gamma * s**2) + 1e-3)
    assert {"eigenvalues_gamma_0.2", "median_condition_number_gamma_0.2"} <= failed("vonoswald2022.gdpp.spectrum")


def test_a_misplaced_peak_and_balance_are_caught(monkeypatch):
    monkeypatch.setattr(descent_variants, "gdpp_peak", lambda gamma: (1 / (2 * gamma), 1 / (8 * gamma)))
    monkeypatch.setattr(descent_variants, "gdpp_balanced_curvature", lambda smallest, largest: 1 / (largest + smallest))
    assert failed("vonoswald2022.gdpp.spectrum") == {"slopes_at_peak_and_root_abs", "balanced_gamma"}


def test_a_smoother_without_its_step_over_n_is_caught(monkeypatch):
    right = descent_variants.kernel_descent

    def as_displayed(kernel, query_kernel, labels, step_size, steps):
        return query_kernel @ labels if steps == 1 else right(kernel, query_kernel, labels, step_size, steps)

    monkeypatch.setattr(descent_variants, "kernel_descent", as_displayed)
    assert failed("vonoswald2022.prop2") == {"prediction_1_layers"}


def test_a_one_hot_score_that_stays_is_caught(monkeypatch):
    monkeypatch.setattr(copying, "successor_weight", lambda score, keys: 1.0)
    assert failed("vonoswald2022.prop3") == {"softmax_weight_2", "softmax_weight_7"}


def test_copies_of_the_predecessor_are_caught(monkeypatch):
    right = copying_layers.copy_successor

    def predecessor(*of):
        layer = right(*of)
        count = of[1]
        w_kq = layer.w_kq.copy()
        w_kq[:count, :count] = w_kq[:count, :count].T
        return type(layer)(layer.w_pv, w_kq)

    monkeypatch.setattr(copying_layers, "copy_successor", predecessor)
    assert {"merged_contents", "positions_erased_abs", "prediction"} <= failed("vonoswald2022.prop3")


def test_contamination_without_the_query_as_last_successor_is_caught(monkeypatch):
    right = copying.contamination

    def shorter(inputs, labels, query, step_size):
        return right(inputs, np.append(labels[:-1], 0.0), query, step_size)

    monkeypatch.setattr(copying, "contamination", shorter)
    assert failed("vonoswald2022.prop3.contamination") == {"added_by_shared_coordinate_abs", "prediction_shared"}


def test_a_limit_that_is_plain_descent_is_caught(monkeypatch):
    def plain(inputs, labels, query, step_size):
        return step_size / len(inputs) * labels.T @ (inputs @ query)

    monkeypatch.setattr(descent_variants, "centred_step", plain)
    assert failed("vonoswald2022.softmax.expand") == {"limit_is_centred_step", "limit_minus_plain_step_abs"}


def test_a_wrong_second_order_is_caught(monkeypatch):
    right = vonoswald2022.softmax_expansion

    def without_variance(scores):
        orders = right(scores)
        orders[2] = (scores - np.mean(scores)) ** 2 / (2 * len(scores))
        return orders

    monkeypatch.setattr(vonoswald2022, "softmax_expansion", without_variance)
    assert {"remainder_1_heads_e_0.001", "remainder_1_heads_e_0.01"} <= failed("vonoswald2022.softmax.expand")


def test_a_memory_that_is_left_out_is_caught(monkeypatch):
    monkeypatch.setattr(descent_variants, "ridge_descent", lambda x, y, eta, decay, steps: _descent(x, y, eta, steps))
    monkeypatch.setattr(descent_variants, "heavy_ball", lambda x, y, eta, momentum, steps: _descent(x, y, eta, steps))
    assert failed("layers.ext.ridge") == failed("layers.ext.momentum") == {"residuals", "prediction"}


def _descent(x, y, eta, steps):
    return vonoswald2022.descent_iterates(np.zeros((y.shape[1], x.shape[1])), x, y, np.full(steps, eta))[-1]


def test_momentum_that_moves_the_residual_one_layer_late_is_caught(monkeypatch):
    right = memory.momentum

    def late(dim, label_dim, *of):
        layer = right(dim, label_dim, *of)
        w_pv = layer.attention.w_pv.copy()
        w_pv[dim + label_dim :] = 0
        return type(layer)(type(layer.attention)(w_pv, layer.attention.w_kq), layer.token_map)

    monkeypatch.setattr(memory, "momentum", late)
    assert failed("layers.ext.momentum") == {"residuals", "prediction"}


@pytest.mark.parametrize(
    ("id", "overrides", "message"),
    [
        ("vonoswald2022.full-attention", {"eta": 0}, "`eta` must be > 0"),
        ("vonoswald2022.gauge", {"s": 0}, "`s` must not be 0"),
        ("vonoswald2022.gdpp.spectrum", {"gamma": [0.1, 0.0]}, "`gamma` must be numbers >= 0"),
        ("vonoswald2022.prop2", {"eta": 0.5}, "2/width"),
        ("vonoswald2022.prop3", {"b": None}, "`b` must list"),
        ("vonoswald2022.softmax.expand", {"temperatures": [0.1, 0.2]}, "decreasing"),
    ],
)
def test_what_the_claims_cannot_check_is_refused(id, overrides, message):
    with pytest.raises(AssumptionError, match=message):
        verify.run([id], overrides)
