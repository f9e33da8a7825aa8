"""One claim at chosen settings, and which of its checks fail."""

import pytest

from icl_lab.claims import verify


def run_claim(id, settings):
    """The entry of a claim that could be run to its end."""
    (entry,) = verify.run([id], settings)
    assert "reason" not in entry, entry.get("reason")
    return entry


def runs_of(settings):
    """A function that runs a claim at its own of these settings, some of them changed: (id, **changes) -> entry."""

    def run(id, **changes):
        return run_claim(id, settings[id] | changes)

    return run


def with_slow(ids, slow):
    """The ids of a parametrised test, those among `slow` marked so."""
    return [pytest.param(id, marks=pytest.mark.slow) if id in slow else id for id in ids]


def failed_checks(entry):
    """The names of the checks that failed."""
    return {check["name"] for check in entry["checks"] if not check["passed"]}


def failed(id, settings):
    """The names of the checks of a claim that fail at chosen settings."""
    return failed_checks(run_claim(id, settings))


def assert_holds(id, *several):
    """That a claim holds at each of several settings."""
    for settings in several:
        (entry,) = verify.run([id], settings)
        assert entry["passed"], (id, settings, failed_checks(entry), entry.get("reason"))
