"""The exact loss of a weighted step is the mean of its squared errors."""

import jax
import numpy as np

from icl_lab import models, objectives
from icl_lab.tasks import CorrelatedRegression


def test_the_exact_loss_is_the_sampled_one(rng):
    joint = np.array([[1.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 1.0]])
    task, model = CorrelatedRegression(3, joint, noise_std=0.7), models.WeightedStep()
    exact = objectives.population(task, model)
    streamed = objectives.StreamedLoss.build(task, model, jax.random.key(0), batch=100_000)
    for matrix in (None, rng.normal(size=(3, 3))):
        weights = models.StepWeights(rng.normal(size=2) / 3, matrix)
        assert abs(exact.risk(weights) - streamed.risk(weights)) < 4 * streamed.standard_error(weights)
