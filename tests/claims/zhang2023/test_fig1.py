"""The long claim: run only by its full name, and able to fail."""

import pytest

from icl_lab.claims import registry, verify


def test_no_glob_starts_it():
    assert "zhang2023.fig1" not in {one.id for one in registry.select(["zhang2023.*"])}
    assert "zhang2023.fig1" not in {one.id for one in registry.select()}
    assert [one.id for one in registry.select(["zhang2023.fig1"])] == ["zhang2023.fig1"]


@pytest.mark.slow
def test_an_untrained_transformer_fails_it():
    settings = {"d": 1, "N": 4, "width": 8, "layers": 1, "steps": 2, "batch": 4, "samples": 1000}
    (entry,) = verify.run(["zhang2023.fig1"], settings)
    assert "reason" not in entry, entry.get("reason")
    assert not entry["passed"]
    failed = {check["name"] for check in entry["checks"] if not check["passed"]}
    # One input of unit variance: the linear layer has half of the zero predictor's error at this size, and is not beaten.
    assert "random_trained_over_linear_layer_at_c_1" in failed
