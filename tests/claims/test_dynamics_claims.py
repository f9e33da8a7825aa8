"""The claims about dynamics hold at values of one's own, and planted errors in the theory are caught."""

import numpy as np
import pytest

from icl_lab.claims import verify
from icl_lab.core.errors import AssumptionError
from icl_lab.theory.regression import stability, timecourse, zhangsaxe2025
from tests.claims.claim_runs import failed_checks, run_claim, with_slow

pytestmark = pytest.mark.claims

SETTINGS = {
    "lab.balanced-limit": {"d": 2, "N": 6, "s2": 0.3, "seed": 3},
    "lab.structured-flow": {"d": 2, "N": 6, "rotate": True},
    "lab.logistic": {"d": 2, "N": 7, "s2": 0.2, "lam": 0.8, "om": 1.3},
    "lab.frozen-u": {"d": 2, "N": 6, "rotate": True, "u0": 0.5},
    "lab.plateau": {"d": 2, "N": 6, "Lam": [1.5, 0.8]},
    "lab.overshoot": {"d": 2, "N": 6},
    "lab.late-rate": {"d": 2, "N": 6, "s2": 0.1},
    "lab.slow-mode": {"N": 200, "Lam": [1.0, 0.2]},
    "lab.gd-invariant": {"d": 2, "N": 6, "h": 0.03},
    "lab.one-head-fullrank": {"d": 2, "N": 6, "s2": 0.2},
    "zhangsaxe2025.merged": {"d": 2, "N": 6, "H": 2, "rotate": True},
    "zhangsaxe2025.separate": {"d": 2, "N": 9, "H": 2, "R": 2, "Lam": [1.0, 0.5], "sigma": 5e-3},
    "lab.escape-exponent": {"d": 2, "N": 5, "starts": 1},
}
# Seconds even at these sizes: they compile a flow of their own.
HEAVY = {"zhangsaxe2025.separate", "lab.escape-exponent", "lab.slow-mode", "lab.balanced-limit", "lab.overshoot"}


def failed(id):
    return failed_checks(run_claim(id, SETTINGS[id]))


@pytest.mark.parametrize("id", with_slow(SETTINGS, HEAVY))
def test_the_claim_holds(id):
    assert not failed(id)


@pytest.mark.slow
def test_fresh_prompts_find_the_product():
    (entry,) = verify.run(["lab.sgd-sanity"], {"d": 2, "N": 6})
    assert entry["passed"], [check for check in entry["checks"] if not check["passed"]]


def test_a_late_rate_without_the_gauge_is_caught(monkeypatch):
    right = stability.late_rates

    def wrong(problem):
        rates = right(problem)
        return stability.LateRates(rates.diagonal * 1.001, rates.off_diagonal)

    monkeypatch.setattr(stability, "late_rates", wrong)
    assert failed("lab.late-rate")


def test_a_frozen_value_on_the_other_clock_is_caught(monkeypatch):
    right = timecourse.frozen_value
    monkeypatch.setattr(timecourse, "frozen_value", lambda problem, times, *rest: right(problem, 2 * np.asarray(times), *rest))
    assert failed("lab.frozen-u")


def test_an_invariant_with_a_plus_is_caught(monkeypatch):
    def wrong(values, inner):
        rows = inner.reshape(len(values), -1)
        return np.outer(values, values) + rows @ rows.T

    monkeypatch.setattr(zhangsaxe2025, "merged_invariant", wrong)
    assert failed("zhangsaxe2025.merged") == {"invariant_abs"}


def test_settings_outside_the_statement_are_refused():
    with pytest.raises(AssumptionError, match="merge"):
        verify.run(["zhangsaxe2025.separate"], {"d": 2, "H": 2, "Lam": [1.0, 0.95]})
    with pytest.raises(AssumptionError, match="at least d"):
        verify.run(["zhangsaxe2025.separate"], {"H": 2})
