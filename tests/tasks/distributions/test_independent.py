"""Laws of independent coordinates: their moments, their draws, what is shared between parameters, and what is refused."""

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.stats

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.tasks import ExponentialDiagonal, FiniteDiagonal, Gaussian, IndependentCoordinates, StudentT, TwoSizes, Uniform

NORMAL = IndependentCoordinates(2, jax.random.normal, kurtosis=3.0, sixth=15.0, variance=[1.5, 0.5])
MATRIX = np.array([[0.7, -0.4], [1.1, 0.3]])


@pytest.mark.parametrize("freedom", [2.5, 7.0, 40.0])
def test_draws_of_students_law_have_its_distribution_function(freedom, key):
    draws = np.asarray(StudentT(2, freedom, scale=[1.0, 3.0]).sample(key, 100_000)) / np.array([1.0, 3.0])
    law = scipy.stats.t(freedom)
    assert scipy.stats.kstest(draws[:, 0], law.cdf).pvalue > 1e-3
    # The twin: another number of degrees of freedom is told apart.
    assert scipy.stats.kstest(draws[:, 1], scipy.stats.t(2 * freedom).cdf).pvalue < (1e-6 if freedom < 10 else 1.0)


@pytest.mark.parametrize("order", [2, 4, 6])
def test_moments_of_students_law(order):
    law = StudentT(1, 9.5, scale=0.7)
    # The reference is an integral over the line, by quadrature.
    np.testing.assert_allclose(law.moments(order), [0.7**order * scipy.stats.t(9.5).moment(order)], rtol=1e-8)


@pytest.mark.parametrize(("freedom", "infinite"), [(3.0, 4), (4.0, 4), (5.0, 6), (6.0, 6)])
def test_infinite_moments_of_students_law_are_refused(freedom, infinite):
    law = StudentT(2, freedom)
    with pytest.raises(UnsupportedProblemError, match=f"moment of order {infinite} of Student's law is infinite"):
        law.moments(infinite)
    if infinite == 4:
        with pytest.raises(UnsupportedProblemError, match="infinite"):
            law.fourth_moment(MATRIX)


@pytest.mark.parametrize("kurtosis", [1.0, 1.8, 3.0, 9.0, 1e4])
def test_two_sizes_have_the_kurtosis_and_the_variance_asked_for(kurtosis):
    law = TwoSizes(3, kurtosis, variance=[1.0, 0.2, 4.0])
    np.testing.assert_allclose(law.moments(2), [1.0, 0.2, 4.0], rtol=1e-12)
    np.testing.assert_allclose(law.moments(4), kurtosis * np.array([1.0, 0.2, 4.0]) ** 2, rtol=1e-12)


def test_two_sizes_are_the_two_values_and_random_signs_at_kurtosis_one(key):
    draws = np.abs(np.asarray(TwoSizes(1, 3.0, variance=2.0).sample(key, 20_000)))
    np.testing.assert_allclose(np.unique(draws.round(12)), [1.0, np.sqrt(10.0)], rtol=1e-11)
    # The larger one has probability 1/9.
    assert abs(np.mean(draws > 2) - 1 / 9) < 4 * np.sqrt(8 / 81 / 20_000)
    signs = np.asarray(TwoSizes(2, 1.0).sample(key, 100))
    np.testing.assert_array_equal(np.unique(signs), [-1.0, 1.0])


def test_sixth_moments(key, agrees):
    for law in (Uniform(2, 1.3), TwoSizes(2, [1.5, 4.0]), NORMAL, FiniteDiagonal([[1.0, 3.0]] * 2, [[0.4, 0.6]] * 2)):
        draws = np.asarray(jax.vmap(lambda key, law=law: law.sample(key, 1)[0])(jax.random.split(key, 40_000)))
        assert agrees(draws**6, law.moments(6))
        assert not agrees(draws**6, 1.5 * law.moments(6))
    np.testing.assert_allclose(ExponentialDiagonal(1, 2.0).moments(6), [15 * 6 * 8.0], rtol=1e-14)


def test_declared_moments_are_those_of_the_gaussian():
    gaussian = Gaussian([1.5, 0.5])
    np.testing.assert_allclose(NORMAL.covariance, gaussian.covariance, rtol=1e-15)
    np.testing.assert_allclose(NORMAL.fourth_moment(MATRIX), gaussian.fourth_moment(MATRIX), rtol=1e-14)
    with pytest.raises(UnsupportedProblemError, match="give it as `sixth`"):
        IndependentCoordinates(2, jax.random.normal, kurtosis=3.0).moments(6)


def test_other_numbers_run_the_same_program(key):
    traces = []

    @eqx.filter_jit
    def draw(law, key):
        traces.append(type(law).__name__)
        return law.sample(key, 3), law.fourth_moment(MATRIX)

    for number in (5.0, 7.0, 9.0):
        draw(StudentT(2, number, scale=number), key)
        draw(TwoSizes(2, number, variance=number), key)
        draw(IndependentCoordinates(2, jax.random.normal, number, number, number), key)
    assert sorted(traces) == ["IndependentCoordinates", "StudentT", "TwoSizes"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StudentT(2, 2.0), "`degrees_of_freedom` must be > 2, since inputs need a covariance.*; got 2"),
        (lambda: StudentT(2, np.inf), "`degrees_of_freedom` must be a finite number > 0"),
        (lambda: StudentT(2, 5.0, scale=0.0), "`scale` must be finite and > 0.*got 0.0"),
        (lambda: StudentT(2, 5.0, scale=[1.0, 1.0, 1.0]), r"`scale` must be a number, or \(2,\).*got shape \(3,\)"),
        (lambda: TwoSizes(2, 0.9), r"`kurtosis` must be finite and >= 1, because E x\^4 >= .*got 0.9"),
        (lambda: TwoSizes(2, 3.0, variance=[1.0, -1.0]), r"`variance` must be finite and > 0.*got \[1.0, -1.0\]"),
        (lambda: TwoSizes(0, 3.0), "`dim` must be an integer >= 1"),
        (lambda: IndependentCoordinates(2, jax.random.normal, 0.5), "`kurtosis` must be finite and >= 1"),
        (lambda: Uniform(2).moments(3), "`order` must be 2, 4 or 6.*got 3"),
        (lambda: Gaussian(np.ones(2)).moments(4), "`Gaussian` has no moments of single coordinates"),
    ],
)
def test_bad_laws_are_refused_by_name(call, message):
    with pytest.raises((InvalidValueError, UnsupportedProblemError), match=message):
        call()
