"""The claims on one layer's landscape hold at small settings, and planted errors make the right checks fail."""

import numpy as np
import pytest

from icl_lab.theory.descent import vonoswald2022
from icl_lab.theory.regression import minima
from tests.claims.claim_runs import failed, with_slow

pytestmark = pytest.mark.claims

SETTINGS = {
    "vonoswald2022.lsa1.optimum": {"d": 2, "N": 4, "sigma": 1.0, "starts": 1, "seed": 3},
    "vonoswald2022.lsa1.heads": {"d": 2, "N": 4, "distribution": "gaussian", "sigma": 0.7, "starts": 3, "seed": 1},
    "vonoswald2022.lsa1.spurious": {"starts": 8, "seed": 2},
    "vonoswald2022.lsa1.saddle": {"d": 2, "N": 3, "distribution": "gaussian", "sigma": 0.7, "seed": 1},
}
SLOW = {
    "vonoswald2022.plateau": {"d": 4, "N": 6, "sigma": 1.0, "starts": 3, "seed": 1},
    "vonoswald2022.fixed-tasks": {"d": 4, "N": 7, "sigma": 1.0, "seed": 5},
}


@pytest.mark.parametrize("id", with_slow(SETTINGS | SLOW, SLOW))
def test_the_claim_holds(id):
    assert failed(id, (SETTINGS | SLOW)[id]) == set()


def test_a_step_size_without_the_kurtosis_is_caught(monkeypatch):
    right = vonoswald2022.optimal_step_size
    monkeypatch.setattr(vonoswald2022, "optimal_step_size", lambda d, n, v, kap, *rest: right(d, n, v, 2.5, *rest))
    names = {"least_squares", "coefficients", "trained_heads"}
    assert names <= failed("vonoswald2022.lsa1.heads", SETTINGS["vonoswald2022.lsa1.heads"])


def test_a_wrong_escape_is_caught(monkeypatch):
    monkeypatch.setattr(minima, "saddle_curvatures", lambda d, v: np.full(2 * d + 2, v**2))
    assert "eigenvalues" in failed("vonoswald2022.lsa1.saddle", SETTINGS["vonoswald2022.lsa1.saddle"])


def test_a_wrong_false_minimum_is_caught(monkeypatch):
    monkeypatch.setattr(minima, "false_minimum", lambda d, n, v: minima.rank_one_branch_loss(d, n, v, 3.0))
    assert "false_minimum" in failed("vonoswald2022.lsa1.spurious", SETTINGS["vonoswald2022.lsa1.spurious"])
