"""Segments between weights in one gauge."""

import jax
import numpy as np
import pytest

from icl_lab import analysis, objectives
from icl_lab.core.errors import InvalidValueError
from icl_lab.models import LinearSelfAttention, LSAWeights, constructions
from icl_lab.tasks import LinearRegression

MODEL = LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
TASK = LinearRegression(dim=2, context_length=4)


def in_another_gauge(layer, scale):
    return LSAWeights(w_pv=scale * layer.w_pv, w_kq=layer.w_kq / scale)


def test_the_scale_keeps_its_sign_and_leaves_out_the_label_slots(rng):
    layer = LSAWeights(rng.normal(size=(3, 3)), np.diag([-1.0, -3.0, 7.0]))
    assert analysis.key_query_scale(layer) == -2
    np.testing.assert_allclose(np.diag(analysis.rescaled(layer).w_kq)[:2], [0.5, 1.5])


@pytest.mark.parametrize("scale", [3.0, -0.4])
def test_a_stack_of_layers_is_one_point_in_every_gauge(scale, key):
    steps, bends = np.array([0.4, 0.7]), np.array([0.05, 0.0])
    built = constructions.gd_plus_plus(MODEL, 2, 4, steps, bends)
    other = tuple(in_another_gauge(layer, scale ** (i + 1)) for i, layer in enumerate(built))
    objective = objectives.StreamedLoss.build(TASK, MODEL, key, 64)
    losses = analysis.losses_along_segment(objective, other, built)
    np.testing.assert_allclose(losses, float(objective(built)), rtol=1e-12)
    raw = analysis.losses_along_segment(objective, other, built, [0.0, 0.5, 1.0], rescale=False)
    np.testing.assert_allclose(raw[[0, 2]], losses[0], rtol=1e-12)
    assert abs(raw[1] - losses[0]) > 0.01 * losses[0]


def test_shares_and_heads(rng):
    first, second = (LSAWeights(rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 3))) for _ in range(2))
    points = analysis.interpolate(first, second, [0.0, 0.25, 1.0])
    np.testing.assert_allclose(points.w_pv[1], 0.75 * first.w_pv + 0.25 * second.w_pv)
    jax.tree.map(lambda p, a: np.testing.assert_array_equal(p[0], a), points, first)
    prompt = TASK.sample(jax.random.key(3))
    np.testing.assert_allclose(MODEL(analysis.rescaled(first), prompt), MODEL(first, prompt), rtol=1e-10)


def test_weights_without_a_scale_or_of_another_shape_are_refused(rng):
    layer = LSAWeights(np.eye(3), np.diag([1.0, -1.0, 2.0]))
    with pytest.raises(InvalidValueError, match="zero"):
        analysis.rescaled(layer)
    with pytest.raises(InvalidValueError, match="structure"):
        analysis.interpolate(layer, (layer,), [0.5])
