"""Losses over finite rules of prompts, against sampled prompts and finer rules."""

import numpy as np
import pytest

from icl_lab import objectives
from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.models import LinearSelfAttention, LSAWeights
from icl_lab.tasks import GaussianStart, LinearDynamics, RotationBlocks

MODEL = LinearSelfAttention(causal=True, embedding="paired")


def random_weights(rng, dim):
    return LSAWeights(0.3 * rng.normal(size=(3 * dim, 3 * dim)), 0.3 * rng.normal(size=(3 * dim, 3 * dim)))


def test_the_rule_agrees_with_sampled_sequences(rng, key):
    task = LinearDynamics(2, 3, RotationBlocks(), GaussianStart(0.7))
    weights = random_weights(rng, 2)
    exact = objectives.rotation_cubature(task, MODEL)
    sampled = objectives.SampledLoss.build(task, MODEL, key, 40_000, groups=20, every_position=True)
    assert exact.standard_error(weights) == 0.0
    assert abs(exact.risk(weights) - sampled.risk(weights)) < 4 * sampled.standard_error(weights)


def test_positions_add(rng):
    task = LinearDynamics(2, 3, RotationBlocks())
    weights = random_weights(rng, 2)
    parts = [float(objectives.rotation_cubature(task, MODEL, (n,))(weights)) for n in (1, 2, 3)]
    assert float(objectives.rotation_cubature(task, MODEL)(weights)) == pytest.approx(sum(parts), rel=1e-12)


def test_a_rule_for_a_longer_sequence_has_the_same_mean(rng):
    # Its angles are more than the shorter sequence needs.
    task, weights = LinearDynamics(2, 3, RotationBlocks()), random_weights(rng, 2)
    alone = objectives.rotation_cubature(task, MODEL, (2,))
    both = objectives.rotation_cubature(task, MODEL, (2, 9))
    longer = objectives.rotation_cubature(task, MODEL, (9,))
    assert float(both(weights)) - float(longer(weights)) == pytest.approx(float(alone(weights)), rel=1e-9)
    assert np.sum(alone.quadrature_weights[0]) == pytest.approx(1.0, rel=1e-13)


def test_other_problems_are_refused():
    with pytest.raises(UnsupportedProblemError, match="standard basis"):
        objectives.rotation_cubature(LinearDynamics(2, 3, RotationBlocks(haar_basis=True)), MODEL)
    with pytest.raises(UnsupportedProblemError, match="prompts"):
        objectives.rotation_cubature(LinearDynamics(6, 3, RotationBlocks()), MODEL)
    with pytest.raises(InvalidValueError, match="batches"):
        objectives.CubatureLoss(LinearDynamics(2, 3, RotationBlocks()), MODEL, (), ())
