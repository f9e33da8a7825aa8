"""Draws against declared moments: right laws pass, however heavy their tails, and wrong ones are named."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab import tasks
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.tasks import CovariateDistribution, Gaussian, IndependentCoordinates, StudentT, TwoSizes, check_distribution
from icl_lab.tasks.distributions import check

SPECTRUM = ([[0.5, 2.0], [1.0, 3.0]], [[0.5, 0.5], [0.7, 0.3]])


def laplace(key, shape):
    return jax.random.laplace(key, shape) / np.sqrt(2)


LAWS = {
    "gaussian": Gaussian([[2.0, 0.7], [0.7, 0.5]]),
    "uniform": tasks.Uniform(2, 0.5),
    "sphere": tasks.Sphere(3, 1.5),
    "laplace": IndependentCoordinates(2, laplace, kurtosis=6.0, sixth=90.0, variance=[0.3, 1.0]),
    "finite_diagonal": tasks.FiniteDiagonal(*SPECTRUM),
    "exponential_diagonal": tasks.ExponentialDiagonal(2, 0.7),
    "rotated_spectrum": tasks.RotatedSpectrum(*SPECTRUM),
    "mixture": tasks.GaussianMixture([[[2.0, 0.7], [0.7, 0.5]], np.eye(2)], [0.3, 0.7]),
    "signs": TwoSizes(2, 1.0, 0.7),
    "two_sizes": TwoSizes(3, [1.5, 3.0, 20.0], 0.7),
    # Moments that no draw or few show, and moments that are infinite.
    "rare": TwoSizes(2, 1e7),
    "seldom": TwoSizes(3, 100.0),
    **{f"student_{freedom}": StudentT(3, freedom) for freedom in (2.2, 3.0, 4.2, 5.0, 6.2, 7.0, 9.0, 30.0)},
}


@pytest.mark.parametrize("name", LAWS)
def test_the_laws_of_the_package_have_the_moments_that_they_declare(name):
    for seed in range(3):
        report = check_distribution(LAWS[name], jax.random.key(seed), samples=20_000)
        assert report.largest_z < check.LARGEST_Z
        assert report.law == type(LAWS[name]).__name__
        judged = {one.name for one in report.checks if one.judged}
        assert "E x_1" in judged
        assert ("E x_1 x_1" in judged) or name in ("student_2.2", "student_3.0")  # whose fourth moment is infinite


class Mine(CovariateDistribution):
    """Normal inputs of standard deviation 2, which may be said to be something else."""

    dim: int = eqx.field(static=True, default=2)
    stated: np.ndarray = eqx.field(default_factory=lambda: 4.0 * np.eye(2))
    mean: float = 0.0
    rows: int = eqx.field(static=True, default=0)

    @property
    def covariance(self):
        return self.stated

    def fourth_moment(self, matrix):
        return Gaussian(4.0 * np.eye(2)).fourth_moment(matrix)

    def sample(self, key, count):
        return self.mean + 2.0 * jax.random.normal(key, (count + self.rows, self.dim))


class Transposed(Mine):
    def fourth_moment(self, matrix):
        return 16.0 * (2 * matrix + np.trace(matrix) * np.eye(2))


class Shared(Mine):
    shared_covariance = False

    def sample(self, key, count):
        one, two = jax.random.split(key)
        # Of variance 4, as stated, but the length of all inputs of a prompt is drawn once.
        size = jnp.sqrt(2.0 * jax.random.bernoulli(one).astype(float))
        return 2.0 * size * jax.random.normal(two, (count, self.dim))

    def fourth_moment(self, matrix):
        return 2.0 * super().fourth_moment(matrix)


def skewed(key, shape):
    return jax.random.exponential(key, shape) - 1.0


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (
            Mine(stated=np.diag([4.0, 4.4])),
            r"`Mine` declares E x_2 x_2 = 4.4, and 100000 draws give 4.0.*standard error.*z = -",
        ),
        (Mine(stated=np.array([[4.0, 0.2], [0.2, 4.0]])), r"declares E x_1 x_2 = 0.2"),
        (Mine(mean=0.1), r"declares E x_1 = 0,"),
        (Transposed(), r"`Transposed` declares u\^T E\[x x\^T A x x\^T\] v"),
        (Shared(), r"`Shared` declares E \|x\|\^2 \|x'\|\^2 of two inputs = 64"),
        (IndependentCoordinates(2, jax.random.normal, kurtosis=3.3), r"declares E x_1\^4 = 3.3"),
        (IndependentCoordinates(2, jax.random.normal, kurtosis=2.7), r"declares E x_1\^4 = 2.7"),
        (IndependentCoordinates(2, jax.random.normal, kurtosis=3.0, sixth=9.0), r"declares E x_1\^6 = 9"),
        (IndependentCoordinates(2, laplace, kurtosis=4.0), r"declares E x_1\^4 = 4"),
        (IndependentCoordinates(2, jax.random.laplace, kurtosis=6.0), r"declares E x_1 x_1 = 1, and 100000 draws give 2.0"),
        (IndependentCoordinates(2, skewed, kurtosis=9.0), r"declares E x_1\^3 = 0"),
        (Mine(rows=1), r"`Mine.sample\(key, 3\)` must have shape \(3, 2\), one input a row; got \(4, 2\)"),
        (Mine(stated=4.0 * np.ones(2)), r"`Mine.covariance` must have shape \(2, 2\); got \(2,\)"),
    ],
)
def test_a_law_that_contradicts_its_draws_is_caught(law, message):
    with pytest.raises(InvalidValueError, match=message):
        check_distribution(law)


def test_what_cannot_be_judged_is_remarked_and_not_raised():
    report = check_distribution(StudentT(2, 5.0), samples=20_000)
    assert any("moment of order 6 of Student's law is infinite" in remark for remark in report.remarks)
    assert any(remark.startswith("E x_1^4: too few draws") for remark in report.remarks)
    with pytest.raises(NonFiniteError, match="gave 80000 NaN"):
        check_distribution(Mine(mean=np.nan), samples=20_000)
    with pytest.raises(InvalidValueError, match="`samples` must be an integer >= 1000"):
        check_distribution(Mine(), samples=10)


def test_a_law_of_a_user_is_checked_once_for_each_of_its_numbers(monkeypatch):
    seen = []
    monkeypatch.setattr(check, "_report", lambda law, *_: seen.append(type(law).__name__))
    monkeypatch.setattr(check, "_checked", set())
    for law in (Mine(), Mine(), Mine(mean=0.1), TwoSizes(2, 3.0), IndependentCoordinates(2, laplace, 6.0)) * 2:
        check.check_once(law, 2)
    assert seen == ["Mine", "Mine", "IndependentCoordinates"]
    jax.jit(lambda scale: check.check_once(dataclasses.replace(Mine(), mean=scale), 2) or scale)(0.5)
    assert len(seen) == 3


@pytest.mark.default_precision
def test_a_check_opens_its_own_float64_scope():
    assert check_distribution(TwoSizes(2, 1.0, 0.7), samples=2000).largest_z < 6
