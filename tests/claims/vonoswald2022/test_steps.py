"""The claims about step sizes hold at small settings, and planted errors make the right checks fail."""

import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError
from icl_lab.theory.descent import descent_steps, gram_moments, vonoswald2022
from tests.claims.claim_runs import failed, with_slow

pytestmark = pytest.mark.claims

SETTINGS = {
    "layers.moments.gauss": {"d": 3, "N": 4, "order": 5, "samples": 20_000},
    "layers.moments.iid": {"d": 3, "N": 4, "order": 4, "samples": 20_000, "seed": 2},
    "layers.moments.rule": {"d": 3, "N": 4, "r": 4, "distribution": "uniform"},
    "vonoswald2022.eta1": {"d": 3, "N": 4, "noise": 0.3, "om2": 2.0, "samples": 5_000},
    "vonoswald2022.eta1.aniso": {"d": 3, "N": 4, "samples": 10_000},
    "vonoswald2022.ood.input": {"d": 3, "N": 4, "alpha": 0.7, "samples": 5_000},
    "vonoswald2022.ood.normal": {"d": 3, "N": 4, "samples": 20_000},
    "vonoswald2022.noise": {"d": 3, "N": 4, "m": 1, "samples": 5_000},
}
SLOW = {
    "vonoswald2022.ood.task": {"d": 3, "N": 4, "alpha": 0.7, "samples": 5_000},
    "vonoswald2022.gd.K": {"d": 3, "N": 5, "samples": 5_000},
    "vonoswald2022.gdpp.optimum": {"d": 3, "N": 5, "starts": 8, "samples": 5_000},
    "vonoswald2022.rollout": {"d": 3, "N": 5, "samples": 5_000},
    "vonoswald2022.gdpp.align": {"d": 3, "N": 5, "samples": 5_000},
}


@pytest.mark.parametrize("id", with_slow(SETTINGS | SLOW, SLOW))
def test_the_claim_holds(id):
    assert failed(id, (SETTINGS | SLOW)[id]) == set()


def test_a_step_size_without_the_kurtosis_is_caught(monkeypatch):
    right = vonoswald2022.optimal_step_size
    monkeypatch.setattr(vonoswald2022, "optimal_step_size", lambda d, n, v, kap, *rest: right(d, n, v, 3.0, *rest))
    assert {"eta", "slope_at_the_optimum_abs"} <= failed("vonoswald2022.eta1", SETTINGS["vonoswald2022.eta1"])


def test_a_recursion_without_its_last_term_is_caught(monkeypatch):
    right = gram_moments.gaussian_moments
    monkeypatch.setattr(gram_moments, "gaussian_moments", lambda d, n, k: [*right(d, n, 2), *([1] * (k - 2))])
    names = {"polynomials_in_d_and_N", "closed_walks", "closed_walks_give_the_same_integers_abs"}
    assert names <= failed("layers.moments.gauss", SETTINGS["layers.moments.gauss"])


def test_replaced_labels_that_still_count_are_caught(monkeypatch):
    right = descent_steps.replaced_labels_loss
    monkeypatch.setattr(descent_steps, "replaced_labels_loss", lambda *of: right(*of[:-1], 0))
    assert failed("vonoswald2022.noise", SETTINGS["vonoswald2022.noise"] | {"m": 3}) == {"loss"}


def test_what_has_no_moments_is_refused():
    with pytest.raises(AssumptionError, match="K = 2; got K = 3"):
        verify.run(["vonoswald2022.gdpp.optimum"], {"K": 3})
    with pytest.raises(AssumptionError, match="at most all N = 10 labels"):
        verify.run(["vonoswald2022.noise"], {"m": 11})
