"""Numbers in a user's task are arguments of compiled programs, or a warning says once which field is a part of them."""

import warnings

import equinox as eqx
import jax
import numpy as np
import pytest

from icl_lab import analysis, estimators, objectives, tasks
from icl_lab.models import LinearSelfAttention
from icl_lab.tasks.sharing import RecompilationWarning, sharing


class Stretched(tasks.CovariateDistribution):
    """Normal inputs times a Python number."""

    dim: int = eqx.field(static=True)
    scale: float = 1.0
    shared_covariance = False

    @property
    def covariance(self):
        return self.scale**2 * np.eye(self.dim)

    def sample(self, key, count):
        return self.scale * jax.random.normal(key, (count, self.dim))

    def fourth_moment(self, matrix):
        return self.scale**4 * (matrix + matrix.T + matrix.trace() * np.eye(self.dim))


class Frozen(Stretched):
    """The same with a number that decides what is drawn, in Python."""

    def sample(self, key, count):
        return (2.0 if self.scale > 1 else self.scale) * jax.random.normal(key, (count, self.dim))


class Tilted(Stretched):
    """The same with a static field."""

    tilt: float = eqx.field(static=True, default=0.0)


def regression(law):
    return tasks.LinearRegression(dim=2, context_length=4, covariates=law)


def test_a_number_becomes_an_argument():
    first, second = sharing(regression(Stretched(2, 1.0))), sharing(regression(Stretched(2, 2.0)))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert isinstance(second.covariates.scale, np.ndarray)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale, risk in ((1.0, 2.0), (3.0, 18.0)):
            measured = analysis.sampled_risks(regression(Stretched(2, scale)), {"zero": estimators.zero}, jax.random.key(0))
            assert abs(measured["zero"].mean - risk) < 4 * measured["zero"].standard_error


def test_a_number_that_python_decides_by_is_left_and_said_once():
    assert sharing(regression(Frozen(2, 0.5))).covariates.scale == 0.5
    with pytest.warns(RecompilationWarning, match="`Frozen.scale` is 2.0 now and was 0.5"):
        assert sharing(regression(Frozen(2, 2.0))).covariates.scale == 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharing(regression(Frozen(2, 3.0)))


def test_a_static_field_is_said():
    sharing(regression(Tilted(2, 1.0, 0.1)))
    with pytest.warns(RecompilationWarning, match="Tilted.tilt"):
        sharing(regression(Tilted(2, 1.0, 0.2)))


def test_sampled_moments_take_numbers_as_arguments(key):
    model = LinearSelfAttention()
    first, second = (objectives.SampledLoss.build(regression(Stretched(2, s)), model, key, 1_000) for s in (1.0, 2.0))
    # The same prompts on another scale; the target is on it too.
    np.testing.assert_allclose(second.moments.variance, 4 * first.moments.variance, rtol=1e-12)
