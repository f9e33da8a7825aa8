"""What trained models are called: linear attention a (preconditioned) step, softmax attention a smoother or nothing."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

from icl_lab import analysis, models, objectives, training
from icl_lab.analysis.identify.identification import CLOSE, NONE
from icl_lab.models import initializers
from icl_lab.tasks import LinearRegression

GD, PRECONDITIONED = "gradient descent", "preconditioned GD"
LINEAR = models.LinearSelfAttention()
SOFTMAX = models.SoftmaxSelfAttention(query_in_sum=False)
SPECTRUM = np.array([2.0, 1.0, 1.0, 0.5, 0.5])


def trained(model, task, steps, rate, heads=None, scale=0.3):
    """Weights in float32 after steps of Adam on fresh prompts."""
    start = initializers.gaussian(jax.random.key(0), task.dim + 1, scale, heads)
    start = jax.tree.map(lambda w: np.asarray(w, np.float32), start)
    loss = objectives.StreamedLoss.build(task, model, jax.random.key(1), batch=256)
    adam = optax.adam(optax.cosine_decay_schedule(rate, steps))
    return training.descend(loss, start, adam, steps, key=jax.random.key(2)).limit


@pytest.mark.parametrize(("spectrum", "family"), [(np.ones(5), GD), (SPECTRUM, PRECONDITIONED)])
def test_the_limit_of_exact_flow_is_a_step_to_the_accuracy_of_the_flow(spectrum, family):
    task = LinearRegression(5, 20, covariance=spectrum)
    limit = training.gradient_flow(objectives.population(task, LINEAR), initializers.zhang(5, 0.1)).limit
    for seed in (0, 1, 2):
        found = analysis.identify(eqx.Partial(LINEAR, limit), task, jax.random.key(seed), 1024)
        assert found.verdict == family
        assert found.distance(family).mean < 1e-7
        # The limit of the flow in closed form.
        expected = 1 / ((1 + 1 / 20) * spectrum + np.sum(spectrum) / 20)
        if family == GD:
            np.testing.assert_allclose(found.identified.parameters["step_size"], expected[:1], rtol=1e-6)
        else:
            fitted = found.identified.parameters["preconditioner"]
            np.testing.assert_allclose(fitted, np.diag(expected), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("spectrum", "families"), [(np.ones(5), (GD, PRECONDITIONED)), (SPECTRUM, (PRECONDITIONED,))])
def test_float32_training_on_fresh_prompts_is_close_to_the_step(spectrum, families):
    task = LinearRegression(5, 20, covariance=spectrum)
    weights = trained(LINEAR, task, 2000, 5e-3, scale=0.05)
    for seed in (0, 1, 2):
        found = analysis.identify(eqx.Partial(LINEAR, weights), task, jax.random.key(seed))
        assert found.verdict in families
        # Training noise, of which the threshold is a multiple.
        assert 1e-6 < found.ranked[0].distance.mean < CLOSE / 2


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "length"), [(5, 20), (3, 50)])
@pytest.mark.parametrize("heads", [None, 2])
def test_softmax_attention_is_never_called_a_gradient_step(heads, dim, length):
    task = LinearRegression(dim, length)
    weights = trained(SOFTMAX, task, 1500, 1e-2, heads)
    for seed in (0, 1, 2):
        found = analysis.identify(eqx.Partial(SOFTMAX, weights), task, jax.random.key(seed))
        assert found.verdict == NONE or found.verdict.startswith("kernel smoother")
        assert found.distance(GD).mean > 1.5 * CLOSE
        assert found.ranked[0].candidate.family.startswith("kernel smoother")
