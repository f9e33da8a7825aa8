import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import eval_hermitenorm, gamma, roots_genlaguerre

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.tasks import (
    Hermite,
    Linear,
    Link,
    Monomial,
    NonlinearRegression,
    RandomCosine,
    ReLU,
    ReLUNetwork,
    Sign,
    SingleIndex,
    Uniform,
    random_rotation,
)

DIM, PROMPTS = 3, 40_000

FAMILIES = {
    "linear": Linear(),
    "relu_network": ReLUNetwork(4),
    "sign": SingleIndex(Sign()),
    "cube": SingleIndex(Monomial(3)),
    "cosine": RandomCosine(),
    "even_square": SingleIndex(Monomial(2), random_sign=True),
    "cosine_sphere": RandomCosine(direction="sphere"),
    "relu_axis": SingleIndex(ReLU(), direction="axis"),
    "relu_gaussian": SingleIndex(ReLU(), direction="gaussian", random_sign=True),
    "hermite2": SingleIndex(Hermite(2)),
    "hermite3_axis": SingleIndex(Hermite(3), direction="axis"),
    "hermite3_gaussian": SingleIndex(Hermite(3), direction="gaussian"),
    "square_gaussian": SingleIndex(Monomial(2), direction="gaussian"),
}


@functools.cache
def batch(name, noise_std=0.0):
    task = NonlinearRegression(DIM, 2, FAMILIES[name], noise_std=noise_std)
    return jax.tree.map(np.asarray, task.sample_batch(jax.random.key(8), PROMPTS))


def axis_statistic(prompts):
    """A statistic of mean 0 if the distribution of f is rotation invariant: a form of two inputs that singles out the axes
    minus the same form in rotated axes, times functions of the two labels. Bounded throughout, for light tails."""
    bounded = lambda t: t**2 / (1 + t**2)  # noqa: E731
    form = lambda u, v: np.sum((bounded(u) - 0.34) * (bounded(v) - 0.34), axis=1)  # noqa: E731
    x, z = prompts.inputs[:, 0], prompts.inputs[:, 1]
    rotation = random_rotation(DIM, seed=2)
    labels = bounded(prompts.labels[:, 0, 0]) * bounded(prompts.labels[:, 1, 0])
    return labels * (form(x, z) - form(x @ rotation, z @ rotation))


# Values at d = 3 worked out by hand from the table of Theorem 3 of arXiv 2307.03576: E f^2, E f^2 |x|^2, E |m_f|^2.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", (3, 15, 3)),
        ("relu_network", (6, 30, 3)),
        ("sign", (1, 3, 2 / math.pi)),
        ("cube", (15, 135, 9)),
        ("cosine", (0.5, 1.5, 1.5 * 3**-2.5)),
        ("even_square", (3, 21, 0)),
        # He_3 = s^3 - 3 s along an axis: E f^2 = 3!, E f^2 z^2 = 42, E z f = 0.
        ("hermite3_axis", (6, 54, 0)),
        # He_2: E f^2 = 2, E f^2 z^2 = 15 - 6 + 1 = 10.
        ("hermite2", (2, 14, 0)),
        # He_3(rz) = r^3 z^3 - 3 r z; E r^2, r^4, r^6 = 3, 15, 105: E f^2 = 15 E r^6 - 18 E r^4 + 9 E r^2 = 1332,
        # E f^2 z^2 = 105 E r^6 - 90 E r^4 + 27 E r^2 = 9756, E z f = 3 r^3 - 3 r.
        ("hermite3_gaussian", (1332, 9756 + 2 * 1332, 9 * (105 - 2 * 15 + 3))),
    ],
)
def test_moments_are_those_worked_by_hand(name, expected):
    moments = NonlinearRegression(DIM, 2, FAMILIES[name]).moments
    assert moments == pytest.approx(expected, rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampled_moments_agree_with_the_closed_forms(name, agrees):
    prompts = batch(name)
    x, y = prompts.inputs, prompts.labels[:, :, 0]
    moments = FAMILIES[name].moments(DIM)
    assert agrees(y[:, 0] ** 2, moments.second)
    assert agrees(y[:, 0] ** 2 * np.sum(x[:, 0] ** 2, axis=1), moments.second_times_norm)
    # Two independent inputs of one f: E (x_1 f(x_1)).(x_2 f(x_2)) = E |m_f|^2.
    assert agrees(np.sum(x[:, 0] * x[:, 1], axis=1) * y[:, 0] * y[:, 1], moments.correlation)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dim", [1, 4])
def test_hermite_moments_of_gaussian_directions_agree_with_quadrature(degree, dim):
    # z by 12 Gauss-Hermite nodes, exact to degree 23; degree 10 is needed.
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / math.sqrt(2 * math.pi)
    # r^2 = chi^2_d through Gauss-Laguerre in r^2 / 2 of weight t^(d/2 - 1).
    t, radial_weights = roots_genlaguerre(12, dim / 2 - 1)
    r, radial_weights = np.sqrt(2 * t), radial_weights / gamma(dim / 2)
    g = eval_hermitenorm(degree, r[:, None] * nodes[None, :])
    average = lambda values: float(radial_weights @ values @ weights)  # noqa: E731
    second, with_square = average(g**2), average(g**2 * nodes[None, :] ** 2)
    correlation = float(radial_weights @ ((g * nodes[None, :]) @ weights) ** 2)
    moments = SingleIndex(Hermite(degree), direction="gaussian").moments(dim)
    expected = (second, with_square + (dim - 1) * second, correlation)
    assert moments == pytest.approx(expected, rel=1e-10, abs=1e-9)  # cancellation among terms up to 1e5


def test_only_the_first_hermite_degree_is_visible_to_linear_predictors():
    visible = [SingleIndex(Hermite(k)).moments(5).correlation for k in range(6)]
    np.testing.assert_allclose(visible, [0, 1, 0, 0, 0, 0], atol=1e-10)


def test_the_stated_symmetries_are_these():
    symmetries = {name: (f.rotation_invariant, f.odd_symmetric) for name, f in FAMILIES.items()}
    assert symmetries["linear"] == symmetries["cosine"] == symmetries["even_square"] == (True, True)
    assert symmetries["sign"] == symmetries["cube"] == symmetries["relu_network"] == (True, True)
    assert symmetries["hermite2"] == symmetries["square_gaussian"] == (True, False)
    assert symmetries["hermite3_axis"] == (False, True)
    assert symmetries["relu_axis"] == (False, False)
    assert RandomCosine(direction="axis").rotation_invariant is False


@pytest.mark.parametrize("name", FAMILIES)
def test_sampled_distributions_have_the_stated_symmetries(name, agrees):
    prompts, family = batch(name), FAMILIES[name]
    a, b = prompts.labels[:, 0, 0], prompts.labels[:, 1, 0]
    assert agrees(a**3, 0.0) == family.odd_symmetric
    if family.odd_symmetric:
        assert agrees(a * b**2, 0.0)
    if family.rotation_invariant:
        assert agrees(axis_statistic(prompts), 0.0)


def test_the_rotation_statistic_sees_the_axes(agrees):
    # Twin of the check above: it has the power to fail.
    assert not agrees(axis_statistic(batch("relu_axis")), 0.0)


@given(seed=st.integers(0, 10**6))
def test_rotating_latent_and_input_together_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    x, rotation = rng.standard_normal(DIM), random_rotation(DIM, seed)
    direction, sign = rng.standard_normal(DIM), 1.0
    for link in (Sign(), ReLU(), Monomial(3), Hermite(4)):
        f = SingleIndex(link, direction="gaussian")
        rotated = f((jnp.asarray(rotation @ direction), jnp.asarray(sign)), jnp.asarray(rotation @ x))
        plain = f((jnp.asarray(direction), jnp.asarray(sign)), jnp.asarray(x))
        np.testing.assert_allclose(rotated, plain, rtol=1e-9, atol=1e-9)  # rounding times a fourth power


def test_directions_lie_where_they_should():
    sphere, axis = (batch(name).latent[0] for name in ("sign", "relu_axis"))
    np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), 1.0, rtol=1e-14)
    vectors, counts = np.unique(axis, axis=0, return_counts=True)
    assert {tuple(v) for v in vectors} == {tuple(s * row) for row in np.eye(DIM) for s in (1.0, -1.0)}
    assert np.max(np.abs(counts - PROMPTS / 6)) < 5 * math.sqrt(PROMPTS * 5 / 36)  # 5 standard errors of a count


def test_target_is_noiseless_and_labels_carry_the_noise(agrees):
    quiet, loud = batch("cube"), batch("cube", noise_std=0.3)
    for name in ("inputs", "query"):
        np.testing.assert_array_equal(getattr(quiet, name), getattr(loud, name))
    np.testing.assert_allclose(loud.target, quiet.target, rtol=1e-12)  # another fusion of the same products
    assert agrees((loud.labels - quiet.labels)[:, :, 0] ** 2, np.full(2, 0.09))


def test_moments_are_refused_where_they_are_not_known():
    class Tanh(Link):
        @property
        def odd(self):
            return True

        def __call__(self, s):
            return jnp.tanh(s)

    with pytest.raises(UnsupportedProblemError, match="link `Tanh`"):
        SingleIndex(Tanh()).moments(3)
    with pytest.raises(UnsupportedProblemError, match="standard Gaussian covariates only; these are `Uniform`"):
        _ = NonlinearRegression(3, 2, Linear(), covariates=Uniform(3)).moments
    with pytest.raises(UnsupportedProblemError, match="standard Gaussian covariates only; these are `Gaussian`"):
        _ = NonlinearRegression(3, 2, Linear(), covariance=[2.0, 1.0, 1.0]).moments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SingleIndex(Sign(), direction="ball"),
            "`direction` must be one of sphere, gaussian, axis; got 'ball'",
        ),
        (lambda: RandomCosine(direction=""), "`direction` must be one of sphere, gaussian, axis; got ''"),
        (lambda: ReLUNetwork(0), "`width` must be an integer >= 1; got 0"),
        (lambda: NonlinearRegression(3, 0, Linear()), "`context_length` must be an integer >= 1; got 0"),
        (lambda: NonlinearRegression(0, 3, Linear()), "`dim` must be an integer >= 1; got 0"),
        (
            lambda: NonlinearRegression(3, 3, Linear(), noise_std=-1.0),
            "`noise_std` must be a finite number >= 0; got -1",
        ),
    ],
)
def test_bad_responses_are_refused_by_name(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()
