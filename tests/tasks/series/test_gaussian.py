import jax
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError, NotPositiveDefiniteError
from icl_lab.tasks import GaussianSeries, arma_autocovariances, autocovariances, series


def test_prompts_have_the_autocovariances_asked_for(key):
    gamma = arma_autocovariances([0.6], [0.7], 1.3, 8)
    task = GaussianSeries(gamma, order=2)
    assert task.context_length == 5
    prompts = jax.vmap(task.sample)(jax.random.split(key, 40_000))
    values = np.concatenate([np.asarray(jax.vmap(series)(prompts)), np.asarray(prompts.target)], axis=1)
    assert values.shape == (40_000, 8)
    products = values[:, :, None] * values[:, None, :]
    error = np.std(products, axis=0) / np.sqrt(len(values))
    expected = gamma[np.abs(np.subtract.outer(np.arange(8), np.arange(8)))]
    assert np.max(np.abs(np.mean(products, axis=0) - expected) / error) < 4.5  # 36 entries


def test_windows_are_those_of_the_series(key):
    prompt = GaussianSeries(arma_autocovariances([], [0.0, 0.9], 1.0, 9), order=2).sample(key)
    values = np.concatenate([np.asarray(series(prompt)), np.asarray(prompt.target)])
    np.testing.assert_array_equal(prompt.inputs[3], values[3:5])
    np.testing.assert_array_equal(prompt.labels[3], values[5:6])
    np.testing.assert_array_equal(prompt.query, values[-3:-1])


def test_arma_autocovariances():
    theta = 0.8
    np.testing.assert_allclose(arma_autocovariances([], [theta], 2.0, 3), 4 * np.array([1 + theta**2, theta, 0.0]))
    np.testing.assert_allclose(
        arma_autocovariances([1.2, -0.5], [], 0.7, 6), autocovariances([1.2, -0.5], 0.7, 6), rtol=1e-12, atol=1e-14
    )
    # ARMA(1, 1): gamma_0 = (1 + 2 phi theta + theta^2) / (1 - phi^2), gamma_k = phi gamma_{k-1} from k = 2 on.
    gamma = arma_autocovariances([0.6], [0.7], 1.0, 4)
    assert gamma[0] == pytest.approx((1 + 2 * 0.6 * 0.7 + 0.7**2) / (1 - 0.6**2), rel=1e-14)
    np.testing.assert_allclose(gamma[2:], 0.6 * gamma[1:3], rtol=1e-13)


def test_bad_series_are_refused():
    with pytest.raises(InvalidValueError, match="stationary"):
        arma_autocovariances([1.0], [], 1.0, 3)
    with pytest.raises(InvalidValueError, match="N \\+ p \\+ 1"):
        GaussianSeries([1.0, 0.5], order=1)
    with pytest.raises(NotPositiveDefiniteError):
        GaussianSeries([1.0, 0.9, -0.9], order=1)
