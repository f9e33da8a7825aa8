"""What a configuration's numbers may be is said before training, for every group."""

import math

import pytest

from icl_lab.config import limits
from icl_lab.core.errors import AssumptionError, InvalidValueError, MemoryBudgetError
from icl_lab.runs import simulate
from icl_lab.tasks import AssociativeRecall, LinearRegression

FLOW = {"kind": "gradient_flow", "solver": "auto", "weight_tolerance": 1e-8, "max_steps": 10}
ANALYSIS = {"prompts": 10, "seed": 0, "context_lengths": None, "ridge_penalty": None, "figures": None}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, 1.0])
def test_a_tolerance_is_a_relative_error(value):
    with pytest.raises(InvalidValueError, match=r"`trainer\.weight_tolerance` must be a number between 0 and 1"):
        limits.check_trainer(FLOW | {"weight_tolerance": value})


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (FLOW | {"max_steps": 0}, "`trainer.max_steps` must be an integer >= 1"),
        (FLOW | {"max_steps": 10**30}, "`trainer.max_steps` must be at most 2147483647"),
        (FLOW | {"solver": "euler"}, "`trainer.solver` must be one of .*tsit5"),
        ({"kind": "descent", "steps": -1}, "`trainer.steps` must be an integer >= 1"),
    ],
)
def test_trainers_that_have_no_end_or_no_start_are_refused(group, message):
    with pytest.raises(InvalidValueError, match=message):
        limits.check_trainer(group)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": 1}, "`analysis.prompts` must be an integer >= 2"),
        ({"prompts": 10**30}, "`analysis.prompts` must be at most"),
        ({"ridge_penalty": math.nan}, "`penalty` must be a finite number > 0"),
        ({"ridge_penalty": 0.0}, "`penalty` must be a finite number > 0"),
        ({"context_lengths": "abc"}, "null, an integer >= 1 or a list of them; got 'abc'"),
        ({"context_lengths": True}, "or a list of them; got True"),
        ({"context_lengths": {"a": 1}}, "or a list of them; got"),
        ({"context_lengths": 0}, "an integer >= 1; got 0"),
        ({"context_lengths": math.nan}, "or a list of them; got nan"),
        ({"context_lengths": [math.inf]}, "or a list of them; got .inf"),
        ({"context_lengths": [[1]]}, "or a list of them; got"),
        ({"context_lengths": ["x"]}, "or a list of them; got .'x'"),
        ({"context_lengths": [10**9]}, "numbers, more than the 134217728 allowed"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(change, message):
    with pytest.raises((InvalidValueError, MemoryBudgetError), match=message):
        limits.check_analysis(ANALYSIS | change, LinearRegression(2, 5))


def test_a_length_that_a_task_does_not_have_is_refused_before_training():
    recall = AssociativeRecall(dim=4, context_length=2, orthonormal=True)
    limits.check_analysis(ANALYSIS | {"context_lengths": [4]}, recall)
    with pytest.raises(InvalidValueError, match=r"at most dim = 4 if keys are orthonormal.*; got 8"):
        limits.check_analysis(ANALYSIS, recall)


@pytest.mark.parametrize(
    ("asked", "lengths"), [(None, [1, 2, 5, 10, 20]), (20, [5, 20]), (2e1, [5, 20]), ([], [5]), ([7, 3], [3, 5, 7])]
)
def test_context_lengths_are_one_or_many(asked, lengths):
    assert limits.context_lengths(asked, 5) == lengths


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("task", "dim", 10**30),
        ("task", "dim", 0),
        ("task", "width", -1),
        ("task", "order", 10**9),
        ("model", "layers", 10**30),
        ("model", "loops", 0),
        ("model", "heads", 10**30),
    ],
)
def test_sizes_fit_into_memory(group, key, value):
    with pytest.raises(InvalidValueError, match=f"`{group}.{key}` must be (at most 16384|an integer >= 1)"):
        limits.check_sizes({key: value}, group)


def test_null_is_no_size():
    limits.check_sizes({"heads": None, "layers": 1}, "model")


@pytest.mark.parametrize(
    ("group", "change"),
    [
        ("trainer", {"weight_tolerance": math.nan}),
        ("trainer", {"init_scale": math.nan}),
        ("analysis", {"context_lengths": "abc"}),
        ("objective", {"prompts": -1}),
        ("model", {"layers": 10**30}),
        ("task", {"dim": 10**30}),
        ("task", {"covariance": {"condition_number": 10**400}}),
    ],
)
def test_nothing_is_drawn_or_trained_for_a_problem_that_is_none(group, change):
    config = {
        "seed": 0,
        "precision": "float64",
        "task": {"kind": "linear_regression", "dim": 2, "context_length": 5, "noise_std": 0.0}
        | {"covariance": None, "rotate": None, "task_covariance": None},
        "model": {"kind": "linear_attention", "embedding": "merged", "query_in_sum": True, "causal": False, "layers": 1}
        | {"loops": 1, "heads": None, "parametrisation": "merged", "readout_sign": 1.0, "layer_norm": False, "clip": None}
        | {"normaliser": "context_length"},
        "objective": {"kind": "population", "prompts": 100},
        "trainer": FLOW | {"init": "zhang", "init_scale": 0.1},
        "analysis": ANALYSIS,
    }
    simulate.prepare(config)
    with pytest.raises((InvalidValueError, AssumptionError)):
        simulate.prepare(config | {group: config[group] | change})
