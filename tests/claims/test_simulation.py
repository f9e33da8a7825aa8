"""Standard errors of simulated numbers are the spread that fresh draws have."""

import numpy as np
import pytest

from icl_lab.claims.simulation import ratio_with_error

pytestmark = pytest.mark.claims


def test_the_error_of_a_ratio_is_the_spread_of_ratios(rng):
    denominators = 2.0 + rng.standard_normal((3_000, 400))
    numerators = 1.5 * denominators + 0.5 * rng.standard_normal((3_000, 400))
    ratios, errors = np.array([ratio_with_error(*pair) for pair in zip(numerators, denominators, strict=True)]).T
    assert np.mean(ratios) == pytest.approx(1.5, abs=4 * np.std(ratios) / np.sqrt(3_000))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.06)
