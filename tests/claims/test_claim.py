"""Parameters: defaults, ranges, and messages that name what is accepted."""

import numpy as np
import pytest

from icl_lab.claims.claim import Claim, Source
from icl_lab.claims.setting import Setting, choice, flag, integer, number, optional, spectrum, table, vector
from icl_lab.core.errors import InvalidValueError


class Toy(Setting):
    d: int = integer(3, 1)
    s2: float = number(0.5, 0.0)
    sigma: float = number(0.1, positive=True)
    rotate: bool = flag(False)
    distribution: str = choice("gaussian", ("gaussian", "uniform"))
    Lam: list[float] | None = spectrum()
    w: list[float] | None = vector(None)
    A: list[list[float]] | None = table(None)


def _toy(setting):
    """A toy.

    It measures nothing, and cannot fail.
    """
    return []


def _claim(setting=Toy):
    return Claim(id="toy.claim", setting=setting, source=Source("toy", "nowhere"), run=_toy)


def test_overrides_replace_defaults():
    resolved = _claim().resolve({"d": 2, "Lam": [2, 1.5], "s2": 0}).to_json()
    defaults = {"sigma": 0.1, "rotate": False, "distribution": "gaussian", "w": None, "A": None}
    assert resolved == {"d": 2, "s2": 0.0, "Lam": [2.0, 1.5], **defaults}


def test_a_whole_number_in_scientific_notation_is_an_integer():
    resolved = _claim().resolve({"d": 1e3, "sigma": 1e-3})
    assert (resolved.d, resolved.sigma) == (1_000, 1e-3)
    assert type(resolved.d) is int


def test_numpy_values_of_library_callers_become_plain_ones():
    given = {"d": np.int64(2), "s2": np.float32(0.5), "rotate": np.True_, "Lam": np.array([2.0, 1.0]), "A": np.eye(2)}
    plain = {"d": 2, "rotate": True, "Lam": [2, 1], "A": [[1, 0], [0, 1]]}
    assert _claim().resolve(given).to_json() == _claim().resolve(plain).to_json()


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


def test_a_spectrum_has_an_eigenvalue_for_each_dimension():
    assert _claim().resolve({"d": 2, "Lam": [1, 2]}).Lam == [1.0, 2.0]
    with pytest.raises(InvalidValueError, match=r"toy\.claim: `Lam` must hold d = 3 eigenvalues; got 2"):
        _claim().resolve({"Lam": [1, 2]})
    with pytest.raises(InvalidValueError, match="3 eigenvalues"):
        Toy(Lam=[1, 2])


def test_a_setting_validates_its_parameters_together():
    class Strict(Toy):
        def validate(self):
            if self.rotate and self.d == 1:
                raise InvalidValueError("one dimension has no other basis")

    assert _claim(Strict).resolve({"d": 2, "rotate": True}).rotate
    with pytest.raises(InvalidValueError, match=r"toy\.claim: .*no other basis"):
        _claim(Strict).resolve({"d": 1, "rotate": True})
    with pytest.raises(InvalidValueError, match="no other basis"):
        Strict(d=1, rotate=True)


def test_a_subclass_adds_parameters_and_gives_others_a_new_default():
    class More(Toy):
        d = 5
        T: int = integer(7, 2)

    assert (More().d, More(d=2).d, More().T, Toy().d) == (5, 2, 7, 3)
    assert list(More.parameters()) == [*Toy.parameters(), "T"]
    assert More.parameters()["d"].default == 5
    with pytest.raises(InvalidValueError, match="integer >= 1; got 0"):
        More(d=0)


def test_parameters_of_several_bases_are_joined():
    class Left(Setting):
        d: int = integer(3, 1)

    class Right(Setting):
        N: int = integer(4, 1)

    class Both(Left, Right):
        N = 9

    assert Both().to_json() == {"d": 3, "N": 9} or Both().to_json() == {"N": 9, "d": 3}


def test_an_optional_parameter_is_null_unless_given():
    class Perhaps(Setting):
        c: float | None = optional(number(1.0, positive=True))

    assert Perhaps().c is None
    assert Perhaps(c=2).c == 2.0
    with pytest.raises(InvalidValueError, match="null or a number > 0"):
        Perhaps(c=-1.0)


def test_a_setting_does_not_change():
    with pytest.raises(AttributeError):
        Toy().d = 4


def test_the_statement_and_the_method_are_the_docstring():
    assert (_claim().statement, _claim().method) == ("A toy.", "It measures nothing, and cannot fail.")


@pytest.mark.parametrize("text", [None, "", "Only a statement."])
def test_a_claim_that_does_not_say_how_it_is_measured_is_refused(text):
    def run(setting):
        return []

    run.__doc__ = text
    with pytest.raises(InvalidValueError, match="two paragraphs"):
        Claim(id="toy.claim", setting=Toy, source=Source("toy", "nowhere"), run=run)
