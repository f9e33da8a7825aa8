"""What passes and what never does."""

import json

import numpy as np
import pytest

from icl_lab.claims import check
from icl_lab.core.errors import InvalidValueError, PrecisionError


def test_the_error_is_the_relative_frobenius_norm():
    made = check.exact("matrix", np.array([[3.0, 0.0], [0.0, 4.4]]), np.array([[3.0, 0.0], [0.0, 4.0]]), 0.1)
    assert made.error == pytest.approx(0.4 / 5.0, rel=1e-14)
    assert made.passed
    assert not check.exact("matrix", np.array([3.0, 4.4]), np.array([3.0, 4.0]), 0.07).passed


def test_the_error_is_absolute_if_the_name_says_so():
    made = check.exact("zeros_abs", [0.3, 0.4], [0.0, 0.0], 0.6)
    assert made.error == pytest.approx(0.5, rel=1e-14)
    assert made.passed


def test_a_relative_error_to_zero_is_refused():
    with pytest.raises(InvalidValueError, match="_abs"):
        check.exact("zeros", [0.0, 0.0], [0.0, 0.0], 1e-9)


def test_complex_values_are_refused():
    with pytest.raises(InvalidValueError, match="real and imaginary"):
        check.exact("x_abs", 1 + 1j, 1.0, 1e-3)


def test_shapes_are_never_broadcast():
    with pytest.raises(InvalidValueError, match="shape"):
        check.exact("vector", [1.0, 1.0], 1.0, 1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["number", "number_abs"])
def test_nan_and_infinity_never_pass(bad, name):
    # A broken expectation warns in the division, which is not what is tested.
    with np.errstate(invalid="ignore"):
        assert not check.exact(name, bad, 1.0, np.inf).passed
        assert not check.exact(name, 1.0, bad, np.inf).passed
        assert not check.exact(name, 1.0, 1.0, bad).passed
        assert not check.sampled(name, bad, 1.0, 0.1).passed
        assert not check.sampled(name, 1.0, bad, 0.1).passed
        assert not check.sampled(name, 1.0, 1.0, bad).passed


def test_a_sampled_check_passes_within_four_standard_errors():
    assert check.sampled("mean", 2.0 + 0.39, 2.0, 0.1).passed
    assert not check.sampled("mean", 2.0 + 0.41, 2.0, 0.1).passed
    made = check.sampled("mean", 2.1, 2.0, 0.1)
    assert made.tolerance == pytest.approx(4 * 0.1 / 2.0, rel=1e-14)
    assert made.standard_error == 0.1


def test_the_standard_error_of_an_array_is_summed_in_squares():
    made = check.sampled("means", [3.0, 4.0], [3.0, 4.0], [0.03, 0.04])
    assert made.standard_error == pytest.approx(0.05, rel=1e-14)
    assert made.tolerance == pytest.approx(4 * 0.05 / 5.0, rel=1e-14)


def test_a_sample_too_noisy_to_tell_does_not_pass():
    assert not check.sampled("mean", 1.0, 1.0, 0.2).passed
    assert not check.sampled("mean", 1.0, 1.0, 0.0).passed


def test_a_yes_or_no_check_passes_only_on_yes():
    assert check.holds("converged_abs", True).passed
    assert not check.holds("converged_abs", False).passed


def test_an_inequality_shows_its_bound_and_by_how_much_it_fails():
    made = check.at_most("gap", [1.0, 2.0], [1.5, 2.0])
    assert made.passed
    assert made.error == 0.0
    assert (made.measured, made.expected) == ((1.0, 2.0), (1.5, 2.0))
    broken = check.at_most("gap", [1.0, 2.5], [3.0, 2.0])
    assert not broken.passed
    assert broken.error == pytest.approx(0.5 / np.sqrt(13), rel=1e-14)
    assert check.at_least("u", 2.0, 1.0).passed
    assert not check.at_least("u", 0.5, 1.0).passed
    assert check.at_least("u_abs", 1.0 - 1e-15, 1.0, tolerance=1e-14).passed
    for bad in (np.nan, np.inf):
        with np.errstate(invalid="ignore"):
            assert not check.at_most("gap", bad, 1.0).passed
            assert not check.at_most("gap", 1.0, bad).passed
            assert not check.at_least("gap", bad, 1.0).passed
    assert not check.at_most("gap", -np.inf, 1.0).passed
    with pytest.raises(InvalidValueError, match="shape"):
        check.at_most("gap", [1.0, 2.0], 3.0)


def test_numpy_numbers_become_json_types():
    made = check.exact("number", np.float64(1.0), np.float64(1.0), np.float64(1e-9)).to_json()
    assert {type(value) for name, value in made.items() if name not in ("name", "standard_error", "passed")} == {float}
    assert made["passed"] is True
    assert json.loads(json.dumps(made)) == made


def test_json_keeps_every_digit_and_has_no_nan():
    value = 0.1 + 0.2
    made = check.exact("pair", np.array([[value, np.nan]]), np.array([[1.0, 2.0]]), 1e-9).to_json()
    again = json.loads(json.dumps(made, allow_nan=False))
    assert again == made
    assert again["measured"] == [value, None]
    assert again["error"] is None
    assert again["standard_error"] is None
    assert list(again) == ["name", "measured", "expected", "error", "tolerance", "standard_error", "passed"]


def test_terms_that_cancel_leave_their_rounding():
    terms, small = 14.0, 1.4e-8
    left = (terms + small) - terms
    assert not check.exact("risk", left, small, 1e-9).passed
    made = check.exact("risk", left, small, 1e-9, terms=terms)
    assert made.passed
    assert 1e-9 < made.tolerance < 1e-5
    assert not check.exact("risk", small * (1 + 1e-4), small, 1e-9, terms=terms).passed
    assert check.at_least("risk", -1e-15, 0.0, terms=terms).passed
    assert not check.at_most("risk", 1e-12, 0.0, terms=terms).passed


def test_a_loss_lost_in_rounding_is_refused_before_a_search():
    check.require_shown(1e-6, 3.0)
    for lost in (1e-12, 0.0, -1e-16, np.nan):
        with pytest.raises(PrecisionError, match="shorter context"):
            check.require_shown(lost, 3.0)
