"""Every optimiser of optax that has a learning rate trains, is interrupted and goes on to the same bits, or is refused."""

import inspect

import jax
import numpy as np
import optax
import pytest

from icl_lab import models, objectives, tasks, training
from icl_lab.config.build import build_optimiser
from icl_lab.core.errors import InvalidValueError
from icl_lab.training import checkpoints, descent

NO_OPTIMISERS = {"scale_by_rprop", "scale_by_learning_rate"}
NAMES = [
    name
    for name in dir(optax)
    if name[0].islower() and name not in NO_OPTIMISERS and callable(getattr(optax, name))
    if not inspect.isclass(getattr(optax, name)) and "learning_rate" in inspect.signature(getattr(optax, name)).parameters
]
# One that searches along a line, one whose state holds a random key, and a plain one.
QUICK = {"lbfgs", "noisy_sgd", "sgd"}


@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")  # optax still has it
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_an_interrupted_descent_ends_at_the_same_bits(name, tmp_path, monkeypatch, key):
    objective = objectives.population(tasks.LinearRegression(2, 5), models.LinearSelfAttention(), key, prompts=10, layers=1)
    start = models.initializers.gaussian(key, 3, 0.1, None)
    optimiser = build_optimiser({"optimiser": name, "learning_rate": 0.01})
    monkeypatch.setattr(descent, "MAX_CHUNK", 2)
    whole = training.descend(objective, start, optimiser, steps=4, key=key)

    def killed(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        training.descend(objective, start, optimiser, steps=4, key=key, checkpoint=tmp_path / "state.npz")
    monkeypatch.setattr(checkpoints, "save", save)
    resumed = training.descend(objective, start, optimiser, steps=4, key=key, checkpoint=tmp_path / "state.npz")
    assert resumed.resumed
    assert all(map(np.array_equal, jax.tree.leaves(resumed.limit), jax.tree.leaves(whole.limit)))
    assert np.isfinite(whole.evidence.loss)
    assert whole.evidence.loss < whole.evidence.initial_loss


@pytest.mark.parametrize("name", [*sorted(NO_OPTIMISERS), "ScaleByZoomLinesearchState", "_deprecated_dpsgd", "chain", "adam.x"])
def test_what_is_no_optimiser_is_refused(name):
    with pytest.raises(InvalidValueError, match=r"`trainer\.optimiser` must be the name of an optax optimiser"):
        build_optimiser({"optimiser": name, "learning_rate": 0.01})
