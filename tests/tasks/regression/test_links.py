import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_hermitenorm

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks import Hermite, Monomial, ReLU, Sign


@pytest.mark.parametrize("degree", range(6))
def test_hermite_links_are_the_probabilists_polynomials(degree):
    points = np.linspace(-3, 3, 13)
    values = jax.vmap(Hermite(degree))(jnp.asarray(points))
    np.testing.assert_allclose(values, eval_hermitenorm(degree, points), atol=1e-11)  # terms up to 3^5


def test_links_are_the_functions_they_are_called_after():
    points = jnp.array([-2.0, -0.5, 0.5, 3.0])
    for link, expected in [
        (Monomial(0), [1, 1, 1, 1]),
        (Monomial(3), [-8, -0.125, 0.125, 27]),
        (Sign(), [-1, -1, 1, 1]),
        (ReLU(), [0, 0, 0.5, 3]),
    ]:
        np.testing.assert_array_equal(jax.vmap(link)(points), expected)


@pytest.mark.parametrize("link", [Monomial(2), Monomial(3), Hermite(4), Hermite(3), Sign(), ReLU()], ids=repr)
def test_stated_parity_is_the_parity_of_the_values(link):
    values, mirrored = (np.asarray(jax.vmap(link)(sign * jnp.array([0.3, 1.7]))) for sign in (1.0, -1.0))
    assert np.array_equal(mirrored, -values) == link.odd


@pytest.mark.parametrize("link", [Monomial(0), Monomial(1), Monomial(3), Hermite(2), Hermite(3), Sign(), ReLU()], ids=repr)
def test_moments_of_unit_directions_agree_with_a_fine_sum(link):
    # Trapezoid on [-12, 12] without the node at the kink or jump at 0: its midpoints make the error of order step^2.
    step = 24 / 200_000
    z = -12 + step * (np.arange(200_000) + 0.5)
    density = step * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    g = np.asarray(jax.vmap(link)(jnp.asarray(z)))
    expected = (density @ g**2, density @ (g**2 * z**2), (density @ (g * z)) ** 2)
    assert link.moments(lambda power: 1.0) == pytest.approx(expected, rel=10 * step**2, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Monomial(-1), "`power` must be an integer >= 0; got -1"),
        (lambda: Hermite(-2), "`degree` must be an integer >= 0; got -2"),
    ],
)
def test_bad_links_are_refused_by_name(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call()
