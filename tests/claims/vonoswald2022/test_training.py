"""The claims about trained layers hold at small settings, and planted errors make the right checks fail."""

import numpy as np
import pytest

from icl_lab.theory.descent import vonoswald2022
from tests.claims.claim_runs import failed

pytestmark = pytest.mark.claims

SEGMENTS = {"d": 2, "N": 3, "distribution": "gaussian", "sigma": 0.7, "seed": 2}
METRICS = {"d": 2, "N": 4, "distribution": "gaussian", "sigma": 0.7, "samples": 2_000, "seed": 2}


def test_segments_to_the_construction():
    assert failed("vonoswald2022.interpolation", SEGMENTS) == set()


@pytest.mark.slow
def test_alignment_with_a_step():
    assert failed("vonoswald2022.metrics", METRICS) == set()


def test_a_limit_that_forgets_the_invariant_is_caught(monkeypatch):
    monkeypatch.setattr(vonoswald2022, "limit_scale", lambda p, k, d, rate: np.sqrt(rate / np.sqrt(d)))
    assert {"beta", "midpoints_without_rescaling"} <= failed("vonoswald2022.interpolation", SEGMENTS)


def test_a_midpoint_with_the_absolute_value_is_caught(monkeypatch):
    right = vonoswald2022.midpoint_rate
    monkeypatch.setattr(vonoswald2022, "midpoint_rate", lambda scale, rate: right(abs(scale), rate))
    assert failed("vonoswald2022.interpolation", SEGMENTS) == {"midpoints_without_rescaling"}


@pytest.mark.slow
def test_a_step_size_without_the_kurtosis_is_caught(monkeypatch):
    right = vonoswald2022.optimal_step_size
    monkeypatch.setattr(vonoswald2022, "optimal_step_size", lambda d, n, v, kap: right(d, n, v, 1.0))
    names = failed("vonoswald2022.metrics", METRICS)
    assert {"loss_of_the_flow", "prediction_distance_of_the_flow_abs", "mean_square_sensitivity_of_the_step"} <= names
