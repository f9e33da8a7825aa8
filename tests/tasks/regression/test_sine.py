"""Sine waves: their responses, their distributions of amplitude and phase, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.core.errors import InvalidValueError
from icl_lab.tasks.regression.sine import DISTRIBUTIONS, SineRegression, features


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_responses_are_the_wave_of_the_latent(distribution):
    prompt = SineRegression(6, distribution=distribution).sample(jax.random.key(1))
    amplitude, phase = prompt.latent
    np.testing.assert_allclose(prompt.labels, amplitude * jnp.sin(prompt.inputs + phase), rtol=1e-12)
    np.testing.assert_allclose(prompt.target, amplitude * jnp.sin(prompt.query + phase), rtol=1e-12)
    assert prompt.inputs.shape == (6, 1)
    assert prompt.target.shape == (1,)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distributions_of_amplitude_and_phase(distribution):
    prompts = SineRegression(1, distribution=distribution).sample_batch(jax.random.key(0), 20_000)
    u = (np.asarray(prompts.latent) - [DISTRIBUTIONS[distribution].amplitude[0], 0.0]) / [
        np.ptp(DISTRIBUTIONS[distribution].amplitude),
        np.pi,
    ]
    assert u.min() >= 0
    assert u.max() <= 1
    np.testing.assert_allclose(u.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(u.var(axis=0), 1 / 12, atol=0.003)
    assert np.corrcoef(u.T)[0, 1] == pytest.approx(float(distribution == "published"), abs=0.03)
    assert np.abs(np.asarray(prompts.inputs)).max() == pytest.approx(5.0, abs=0.01)


def test_the_text_is_the_default():
    assert SineRegression(1).distribution == "text"
    np.testing.assert_allclose(SineRegression(1).amplitude, [0.1, 5.0])


def test_own_intervals():
    prompt = SineRegression(3, 2.0, amplitude=(2.0, 2.0), phase=(0.5, 0.5)).sample(jax.random.key(0))
    np.testing.assert_allclose(prompt.latent, [2.0, 0.5])


def test_responses_are_linear_in_the_features():
    prompt = features(SineRegression(5).sample(jax.random.key(2)))
    amplitude, phase = np.asarray(prompt.latent)
    coefficients = amplitude * np.array([np.cos(phase), np.sin(phase)])
    np.testing.assert_allclose(prompt.labels[:, 0], prompt.inputs @ coefficients, rtol=1e-10)
    np.testing.assert_allclose(prompt.target[0], prompt.query @ coefficients, rtol=1e-10)


def test_noise_is_on_the_labels_only():
    clean, noisy = (SineRegression(200, noise_std=s).sample(jax.random.key(3)) for s in (0.0, 0.5))
    np.testing.assert_allclose(noisy.target, clean.target)
    assert np.std(np.asarray(noisy.labels - clean.labels)) == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"distribution": "cosine"}, "distribution"),
        ({"context_length": 0}, "context_length"),
        ({"half_width": 0.0}, "half_width"),
        ({"amplitude": (2.0, 1.0)}, "amplitude"),
        ({"phase": (0.0, 1.0, 2.0)}, "phase"),
        ({"noise_std": -1.0}, "noise_std"),
    ],
)
def test_refused(settings, named):
    with pytest.raises(InvalidValueError, match=named):
        SineRegression(**({"context_length": 2} | settings))
