"""Parameters: defaults, ranges, and messages that name what is accepted."""

import numpy as np
import pytest

from icl_lab.claims.claim import Claim, Source, choice, flag, integer, number, spectrum, table, vector
from icl_lab.core.errors import InvalidValueError


def _claim(validate=None):
    return Claim(
        id="toy.claim",
        statement="a toy",
        source=Source("toy", "nowhere"),
        parameters={
            "d": integer(3, 1),
            "s2": number(0.5, 0.0),
            "sigma": number(0.1, positive=True),
            "rotate": flag(False),
            "distribution": choice("gaussian", ("gaussian", "uniform")),
            "Lam": spectrum(),
            "w": vector(None),
            "A": table(None),
        },
        run=lambda **_: [],
        validate=validate,
    )


def test_overrides_replace_defaults():
    resolved = _claim().resolve({"d": 7, "Lam": [2, 1.5], "s2": 0})
    defaults = {"sigma": 0.1, "rotate": False, "distribution": "gaussian", "w": None, "A": None}
    assert resolved == {"d": 7, "s2": 0.0, "Lam": [2.0, 1.5], **defaults}


def test_a_whole_number_in_scientific_notation_is_an_integer():
    resolved = _claim().resolve({"d": 1e3, "sigma": 1e-3})
    assert (resolved["d"], resolved["sigma"]) == (1_000, 1e-3)
    assert type(resolved["d"]) is int


def test_numpy_values_of_library_callers_become_plain_ones():
    given = {"d": np.int64(2), "s2": np.float32(0.5), "rotate": np.True_, "Lam": np.array([2.0, 1.0]), "A": np.eye(2)}
    assert _claim().resolve(given) == _claim().resolve({"d": 2, "rotate": True, "Lam": [2, 1], "A": [[1, 0], [0, 1]]})


def test_an_unknown_name_is_refused_with_the_accepted_ones():
    with pytest.raises(InvalidValueError, match=r"'M'.*accepts d, s2, sigma, rotate, distribution, Lam, w, A"):
        _claim().resolve({"M": 3})


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("d", 0, "an integer >= 1"),
        ("d", 2.5, "an integer >= 1"),
        ("d", float("inf"), "an integer >= 1"),
        ("d", float("nan"), "an integer >= 1"),
        ("d", True, "an integer >= 1"),
        ("d", "7", "an integer >= 1"),
        ("s2", -0.1, "a number >= 0"),
        ("s2", float("nan"), "a number >= 0"),
        ("s2", float("inf"), "a number >= 0"),
        ("sigma", 0, "a number > 0"),
        ("sigma", None, "a number > 0"),
        ("rotate", 1, "true or false"),
        ("distribution", "cauchy", "one of gaussian, uniform"),
        ("Lam", [1, -1], "null or a list"),
        ("Lam", [], "null or a list"),
        ("Lam", 2.0, "null or a list"),
        ("Lam", "123", "null or a list"),
        ("Lam", ["1", "2"], "null or a list"),
        ("Lam", {1: 2, 2: 1}, "null or a list"),
        ("Lam", {1, 2}, "null or a list"),
        ("w", "123", "null or a list"),
        ("w", {1: 2}, "null or a list"),
        ("A", {"12": 3}, "null or a list"),
        ("A", ["12", "34"], "null or a list"),
        ("s2", 10**400, "a number >= 0"),
        ("s2", "1", "a number >= 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(name, value, accepted):
    with pytest.raises(InvalidValueError, match=accepted):
        _claim().resolve({name: value})


def test_a_claim_validates_its_parameters_together():
    def validate(d, Lam, **_):
        if Lam is not None and len(Lam) != d:
            raise InvalidValueError(f"`Lam` must hold {d} eigenvalues")

    assert _claim(validate).resolve({"d": 2, "Lam": [1, 2]})["Lam"] == [1.0, 2.0]
    with pytest.raises(InvalidValueError, match="3 eigenvalues"):
        _claim(validate).resolve({"Lam": [1, 2]})
