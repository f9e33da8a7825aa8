"""Problems solved together: each ends as by itself, whatever its neighbours do."""

import jax
import numpy as np
import pytest

from icl_lab import objectives, training
from icl_lab.core.errors import InvalidValueError, NonFiniteError
from icl_lab.models import LinearSelfAttention, initializers
from icl_lab.tasks import LinearRegression


def test_each_problem_ends_as_it_would_alone_and_a_broken_one_disturbs_none():
    losses = [
        objectives.population(LinearRegression(dim=2, context_length=6, noise_std=s), LinearSelfAttention()) for s in (0, 1)
    ]
    broken = jax.tree.map(lambda w: w * np.nan, initializers.zhang(2, 0.1))
    problems = [(losses[0], initializers.zhang(2, 0.1)), (losses[0], broken), (losses[1], initializers.zhang(2, 0.3))]
    results = dict(training.gradient_flow_each(problems))
    assert sorted(results) == [0, 1, 2]
    assert isinstance(results[1], NonFiniteError)
    for i in (0, 2):
        alone = training.gradient_flow(*problems[i])
        assert results[i].verdict is alone.verdict
        assert results[i].trajectory.times[0] == 0
        assert np.all(np.diff(results[i].trajectory.times) > 0)
        assert results[i].trajectory.losses[-1] == pytest.approx(alone.trajectory.losses[-1], rel=1e-12)
        for one, other in zip(jax.tree.leaves(alone.limit), jax.tree.leaves(results[i].limit), strict=True):
            # A hundredth of the weight tolerance; the steps are the same.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


def test_unknown_solver_is_refused():
    with pytest.raises(InvalidValueError, match="euler"):
        list(training.gradient_flow_each([], solver="euler"))
