"""One GD step on nonlinear responses: it holds for every family, and a wrong step is caught."""

import pytest

from icl_lab.claims.mahankali2023.nonlinear import FAMILIES
from icl_lab.theory.regression import nonlinear
from tests.claims.claim_runs import failed_checks, run_claim

pytestmark = pytest.mark.claims

ID = "mahankali2023.thm3"
SMALL = {"d": 2, "N": 4, "s2": 0.1, "K": 2, "samples": 20_000, "seed": 5}


def failed(**overrides):
    return failed_checks(run_claim(ID, SMALL | overrides))


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=pytest.mark.slow) if name in ("linear", "sign", "cosine") else name for name in FAMILIES],
)
def test_the_claim_holds_for_one_family(family):
    assert not failed(family=family)


@pytest.mark.slow
def test_all_families_at_once_and_too_many_dimensions_to_lift():
    assert not failed(family="all", d=7)
    assert not failed(family="all", d=1, N=1, s2=0.0)


def test_a_step_that_counts_every_example_twice_is_caught(monkeypatch):
    right = nonlinear.step_size
    monkeypatch.setattr(nonlinear, "step_size", lambda moments, d, n, s2: right(moments, d, 2 * n, s2))
    assert {"eta_relu", "eta_relu_simplified"} <= failed(family="relu")
