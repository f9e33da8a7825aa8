"""The layers of delta rules that take one pass of stochastic gradient descent."""

import numpy as np
import pytest

from icl_lab import estimators, mixers
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import Layered, LinearLayer, MixerLayer
from icl_lab.models.constructions import delta
from tests.models.attention_reference import random_prompt

N, DIM, LABELS = 9, 4, 2


@pytest.mark.parametrize(
    ("step_size", "parameters"), [(0.05, {}), (2.5, {"scale": 0.3}), (0.2, {"negative_eigenvalues": True})]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_layer_answers_as_online_sgd(rng, step_size, parameters, sign):
    model = Layered(MixerLayer(mixers.named("deltanet", **parameters)), readout_sign=sign)
    prompt = random_prompt(rng, N, DIM, LABELS)
    weights = delta.online_sgd(model, DIM, step_size, LABELS)
    expected = np.asarray(estimators.online_sgd(prompt, step_size))
    np.testing.assert_allclose(model(weights, prompt), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_token_t_holds_its_label_and_the_prediction_of_the_examples_up_to_it(rng):
    model = Layered(MixerLayer(mixers.named("deltanet")))
    prompt = random_prompt(rng, N, DIM, LABELS)
    path = np.asarray(estimators.online_sgd_path(prompt, 0.1))
    after = np.asarray(model.apply(delta.online_sgd(model, DIM, 0.1, LABELS), model.tokens(prompt)))
    predictions = np.einsum("nkd,nd->nk", path, prompt.inputs)
    np.testing.assert_allclose(after[:-1, DIM:], prompt.labels + predictions, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(after[-1], np.append(prompt.query, path[-1] @ prompt.query), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(after[:-1, :DIM], prompt.inputs)


def test_a_normalised_step_is_that_of_kaczmarz(rng):
    model = Layered(MixerLayer(mixers.named("deltanet", normalised_step=True)))
    prompt = random_prompt(rng, N, DIM, 1)
    expected = estimators.online_sgd(prompt, 0.7, normalised=True)
    np.testing.assert_allclose(model(delta.online_sgd(model, DIM, 0.7), prompt), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(InvalidValueError, match=r"`write_strength` .* strictly between 0 and 1.*got 1\.2"):
        delta.online_sgd(model, DIM, 1.2)


@pytest.mark.parametrize(("step_size", "scale"), [(0.05, None), (2.5, 0.3), (400.0, None)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_layer_of_longhorn_answers_as_implicit_online_sgd(rng, step_size, scale, sign):
    model = Layered(MixerLayer(mixers.named("longhorn", scale=scale)), readout_sign=sign)
    prompt = random_prompt(rng, N, DIM, LABELS)
    weights = delta.implicit_online_sgd(model, DIM, step_size, LABELS)
    expected = np.asarray(estimators.implicit_online_sgd(prompt, step_size))
    np.testing.assert_allclose(model(weights, prompt), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_neither_construction_takes_the_mixer_of_the_other():
    plain, longhorn = (Layered(MixerLayer(mixers.named(name))) for name in ("deltanet", "longhorn"))
    with pytest.raises(UnsupportedProblemError, match="the delta rule `longhorn` takes the pass"):
        delta.implicit_online_sgd(plain, DIM, 0.1)
    with pytest.raises(UnsupportedProblemError, match="the delta rule `deltanet` takes the pass"):
        delta.online_sgd(longhorn, DIM, 0.1)
    with pytest.raises(InvalidValueError, match="`step_size` must be a finite number > 0"):
        delta.implicit_online_sgd(longhorn, DIM, 0.0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Layered(LinearLayer()), "One layer of the delta rule"),
        (Layered(MixerLayer(mixers.named("gated_deltanet"))), "a decay changes the step"),
        (Layered(MixerLayer(mixers.named("deltanet"), query_in_sum=True)), "query_in_sum=False"),
        (Layered(MixerLayer(mixers.named("deltanet")), embedding="interleaved"), 'embedding "merged"'),
        (Layered(MixerLayer(mixers.named("deltanet")), layer_norm=True), "layer_norm=False"),
    ],
)
def test_what_cannot_take_the_pass_is_refused(model, words):
    with pytest.raises(UnsupportedProblemError, match=words):
        delta.online_sgd(model, DIM, 0.1)


@pytest.mark.parametrize("step_size", [0.0, -0.1, np.inf])
def test_a_step_size_that_is_no_strength_is_refused(step_size):
    with pytest.raises(InvalidValueError, match="`step_size` must be a finite number > 0"):
        delta.online_sgd(Layered(MixerLayer(mixers.named("deltanet"))), DIM, step_size)
