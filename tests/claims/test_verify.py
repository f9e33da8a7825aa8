"""The registry and the runner, on toy claims."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.claims import check, registry, verify
from icl_lab.claims.claim import Source
from icl_lab.claims.setting import Setting, integer, number
from icl_lab.core.errors import AssumptionError, InvalidValueError


@pytest.fixture
def toys(monkeypatch):
    """Three claims in an empty registry: one holds, one does not, one raises."""
    monkeypatch.setattr(registry, "modules", tuple)
    monkeypatch.setattr(registry, "_CLAIMS", {})
    ran = []

    def square(setting):
        ran.append("toy.square")
        d, x = setting.d, setting.x
        return [check.exact("square", float(jnp.sum(jnp.full((d,), x) ** 2)), d * x**2, 1e-14)]

    def wrong(setting):
        return [check.exact("fine", 1.0, 1.0, 1e-14), check.exact("off", float(setting.d), setting.d + 1.0, 1e-3)]

    def broken(setting):
        raise RuntimeError("the flow fell over")

    add("toy.square", square, Sized)
    add("toy.wrong", wrong, Wide)
    add("other.broken", broken, Other)
    return ran


class Wide(Setting):
    d: int = integer(3, 1, "dimension")


class Sized(Wide):
    x: float = number(0.1, meaning="an entry")

    def validate(self):
        if self.x > 10:
            raise AssumptionError("`x` must be at most 10")


class Other(Setting):
    x: float = number(1.0, meaning="an entry")


def add(id, run, setting=Setting):
    """Register a function as a claim."""
    run.__doc__ = "A toy.\n\nIt says nothing of the world."
    registry.claim(id, setting, Source("toy", "-"))(run)


def test_an_entry_has_the_documented_keys(toys):
    (entry,) = verify.run(["toy.square"], {"d": 5})
    assert list(entry) == [
        "id", "paper", "statement", "source", "status", "parameters",
        "checks", "passed", "verdict", "seconds", "device", "precision",
    ]  # fmt: skip
    assert entry["parameters"] == {"d": 5, "x": 0.1}
    assert entry["passed"] is True
    assert entry["precision"] == "float64"
    assert entry["seconds"] > 0
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    # 1e-14 can only be met in float64; an override changes both sides.
    assert entry["checks"][0]["expected"] == pytest.approx(0.05, rel=1e-15)


@pytest.mark.default_precision
def test_claims_run_in_float64_whatever_scope_the_caller_is_in(toys):
    (entry,) = verify.run(["toy.square"])
    assert entry["passed"]
    assert jnp.zeros(()).dtype == jnp.float32


def test_one_failed_check_fails_its_claim_only(toys):
    entries = verify.run(["toy.*"])
    assert [entry["passed"] for entry in entries] == [True, False]
    assert [one["passed"] for one in entries[1]["checks"]] == [True, False]
    assert not verify.all_passed(entries)
    assert verify.all_passed(entries[:1])


def test_a_claim_that_raises_has_failed_with_its_reason(toys):
    entries = verify.run()
    assert [entry["id"] for entry in entries] == ["toy.square", "toy.wrong", "other.broken"]
    assert entries[2]["passed"] is False
    assert "RuntimeError: the flow fell over" in entries[2]["reason"]
    assert entries[0]["passed"]


def test_a_claim_without_checks_does_not_pass(toys):
    add("toy.empty", lambda setting: [])
    (entry,) = verify.run(["toy.empty"])
    assert not entry["passed"]


def test_an_override_goes_to_the_claims_that_have_it(toys):
    entries = verify.run(["toy.*"], {"x": 2.0})
    assert [entry["parameters"] for entry in entries] == [{"d": 3, "x": 2.0}, {"d": 3}]


def test_an_override_that_nobody_accepts_is_refused_before_anything_runs(toys):
    with pytest.raises(InvalidValueError, match=r"'rho'.*accepted are d, x"):
        verify.run(["toy.*"], {"rho": 1, "d": 2})
    assert toys == []


def test_values_outside_a_range_or_an_assumption_are_refused_before_anything_runs(toys):
    with pytest.raises(InvalidValueError, match="integer >= 1"):
        verify.run([], {"d": 0})
    with pytest.raises(AssumptionError, match="at most 10"):
        verify.run([], {"x": 11.0})
    assert toys == []


def test_a_symbol_that_stands_for_several_things_is_refused_for_all_of_them(toys):
    class Elsewhere(Setting):
        x: float = number(1.0, meaning="a time")

    add("third.one", lambda setting: [check.exact("x", setting.x, setting.x, 1e-12)], Elsewhere)
    with pytest.raises(InvalidValueError, match=r"`x` stands for several things.*an entry \(toy.square and 1 more\); a time"):
        verify.run([], {"x": 2.0})
    assert toys == []
    assert verify.run(["third.*"], {"x": 2.0})[0]["parameters"] == {"x": 2.0}


def test_an_unknown_claim_is_refused_with_suggestions(toys):
    with pytest.raises(InvalidValueError, match=r"did you mean toy\.square"):
        verify.run(["toy.sqare"])
    with pytest.raises(InvalidValueError, match="no claim matches"):
        verify.run(["toy.*", "paper.*"])


def test_ids_are_unique(toys):
    with pytest.raises(InvalidValueError, match="taken"):
        add("toy.square", lambda setting: [])


def test_the_order_of_claims_is_not_that_of_imports():
    script = "import icl_lab.claims.{}, icl_lab.claims.registry as r; print(*r.all_claims())"
    listings = [
        subprocess.run([sys.executable, "-c", script.format(first)], check=True, capture_output=True, text=True).stdout.split()
        for first in ("zhang2023.limit", "zhou2025.noise")
    ]
    assert len(listings[0]) > 100
    assert listings[0] == listings[1]


def test_a_notebook_cell_that_defines_a_claim_may_run_again(toys):
    for factor in (2.0, 3.0):

        def again(setting, factor=factor):
            return [check.exact("factor", factor, 3.0, 1e-12)]

        add("toy.again", again)

        (entry,) = verify.run(["toy.again"])
        assert "reason" not in entry
        assert entry["passed"] == (factor == 3.0)


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_is_a_positive_integer(toys, jobs):
    with pytest.raises(InvalidValueError, match="jobs"):
        verify.run([], None, jobs)


def test_progress_is_reported_for_every_claim(toys):
    seen = []
    verify.run([], None, 1, lambda done, total, entry: seen.append((done, total, entry["id"])))
    assert seen == [(1, 3, "toy.square"), (2, 3, "toy.wrong"), (3, 3, "other.broken")]


def test_a_check_on_nan_fails_the_claim(toys):
    add("toy.nan", lambda setting: [check.exact("number", np.nan, 1.0, 1.0)])
    (entry,) = verify.run(["toy.nan"])
    assert not entry["passed"]
    assert entry["checks"][0]["measured"] is None
