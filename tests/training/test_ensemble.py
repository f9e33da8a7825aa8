"""Many starts in one solve: each ends where it would alone, and spurious minima are named."""

import jax
import numpy as np
import pytest

from icl_lab import objectives, theory, training
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.models import LinearSelfAttention, initializers
from icl_lab.tasks import LinearRegression
from icl_lab.training import Verdict


def stack(weights):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *weights)


@pytest.fixture(scope="module")
def problem():
    task = LinearRegression(dim=2, context_length=2)
    starts = stack([initializers.gaussian(key, 3, 0.4) for key in jax.random.split(jax.random.key(1), 8)])
    objective = objectives.population(task, LinearSelfAttention())
    return objective, starts, training.gradient_flows(objective, starts), theory.lsa.optimum(task).risk / 2


def test_each_start_ends_where_it_would_alone(problem):
    objective, starts, ensemble, _ = problem
    for i in (0, 3):
        alone = training.gradient_flow(objective, jax.tree.map(lambda leaf, i=i: leaf[i], starts))
        assert alone.verdict is ensemble.verdicts[i]
        # Along the gauge orbit too: both follow the same path to ten times the tolerance asked.
        for one, other in zip(jax.tree.leaves(alone.limit), jax.tree.leaves(ensemble.limit(i)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)


def test_an_end_does_not_depend_on_the_other_starts(problem):
    objective, starts, ensemble, _ = problem
    few = training.gradient_flows(objective, jax.tree.map(lambda leaf: leaf[:2], starts))
    # The same operations in another batch size: equal to rounding that the flow contracts.
    np.testing.assert_allclose(few.losses, ensemble.losses[:2], rtol=1e-12)


def test_spurious_minima_are_named_by_their_height(problem):
    _, _, ensemble, minimum = problem
    # Isotropic, d = N = 2: the other minimum has half loss (d - beta) / 2 with beta = N / (N + d + 1).
    spurious = (2 - 2 / 5) / 2
    outcomes = ensemble.outcomes(minimum)
    assert set(outcomes) == {"global minimum", "spurious minimum"}
    for outcome, loss in zip(outcomes, ensemble.losses, strict=True):
        np.testing.assert_allclose(loss, minimum if outcome == "global minimum" else spurious, rtol=1e-9)
    assert outcomes[ensemble.best] == "global minimum"


def test_the_share_has_a_binomial_error(problem):
    _, _, ensemble, minimum = problem
    share, error = ensemble.share(minimum)
    hits = ensemble.outcomes(minimum).count("global minimum")
    assert share == hits / 8
    smoothed = (hits + 1) / 10
    assert error == pytest.approx(np.sqrt(smoothed * (1 - smoothed) / 8), rel=1e-14)


@pytest.mark.slow
def test_a_saddle_is_no_minimum():
    objective = objectives.population(LinearRegression(dim=2, context_length=5), LinearSelfAttention())
    zero = jax.tree.map(np.zeros_like, initializers.zhang(2, 0.1))
    ensemble = training.gradient_flows(objective, stack([zero, initializers.zhang(2, 0.1)]), max_steps=3000)
    assert ensemble.verdicts == (Verdict.PLATEAU, Verdict.CONVERGED)
    assert ensemble.best == 1


def test_bad_starts_are_refused(problem):
    objective, starts, _, _ = problem
    with pytest.raises(InvalidValueError, match="leading axis"):
        training.gradient_flows(objective, jax.tree.map(lambda leaf: leaf[0, 0, 0], starts))
    with pytest.raises(InvalidValueError, match="real"):
        training.gradient_flows(objective, jax.tree.map(lambda leaf: leaf + 0j, starts))
    with pytest.raises(InvalidValueError, match="euler"):
        training.gradient_flows(objective, starts, solver="euler")
    with pytest.raises(NonFiniteError, match="start 1"):
        training.gradient_flows(
            objective, jax.tree.map(lambda leaf: leaf + np.array([0, np.nan] + [0] * 6)[:, None, None], starts)
        )
