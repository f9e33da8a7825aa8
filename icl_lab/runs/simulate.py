"""One training run in memory: build the objects, train, compare; `runs.execute` stores what comes out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from icl_lab import analysis, tasks, theory
from icl_lab.analysis.evaluation import comparison
from icl_lab.analysis.evaluation.condensed import condensed, measure_condensed
from icl_lab.analysis.evaluation.measure import Tables, measure
from icl_lab.config import build, limits
from icl_lab.core.errors import AssumptionError, InvalidValueError, UnsupportedProblemError
from icl_lab.core.prng import stream
from icl_lab.core.progress import phase
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models import Learner, LinearSelfAttention
from icl_lab.objectives import Objective, SampledLoss, StreamedLoss
from icl_lab.tasks.prompt import Prompt, Task
from icl_lab.theory import Optimum
from icl_lab.training import TrainingResult, Verdict

TOGETHER = 128
"""Runs that are compared with theory and estimators on one pass over the prompts."""
AT_ONCE = 32
"""Answers of light models in memory at once."""

Table = dict[int, dict[str, dict[str, float]]]
Steps = tuple[float, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What a run produced.

    Attributes:
      status: "done", or "plateau", "max_steps" or "diverged" for training that ended short of what was asked.
      task, model: what was trained.
      initial: the weights at the start.
      training: the path and its limit.
      optimum: the closed form that applies, if one does.
      metrics: what goes into metrics.json.
    """

    status: str
    task: Task
    model: Learner
    initial: Weights
    training: TrainingResult
    optimum: Optimum | None
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a configuration describes, ready to be trained.

    Attributes:
      config: the resolved configuration.
      key: its random key.
      task, model, objective, initial: what is trained, on what, from where.
      optimum: the closed form that applies, if one does.
    """

    config: Mapping[str, Any]
    key: Key
    task: Task
    model: Learner
    objective: Objective
    initial: Weights
    optimum: Optimum | None


def simulate(
    config: Mapping[str, Any],
    checkpoint: Path | None = None,
    on_trained: Callable[[Prepared, TrainingResult], None] | None = None,
) -> Simulation:
    """Train and compare as a resolved configuration says. Call it inside `precision.float64()`.

    With `checkpoint`, a descent that was interrupted goes on from that file. `on_trained` is called before the comparison.

    Raises:
      IclLabError: the configuration describes no valid problem.
    """
    problem = prepare(config)
    result = train(problem, checkpoint)
    if on_trained is not None:
        on_trained(problem, result)
    return finish([problem], [result])[0]


@phase("building the problem")
def prepare(config: Mapping[str, Any], like: Prepared | None = None) -> Prepared:
    """Build what a configuration describes, out of the objects of `like` where it says the same. In `precision.float64()`.

    Raises:
      IclLabError: the configuration describes no valid problem.
    """

    def same(*keys: str) -> bool:
        return like is not None and all(like.config[key] == config[key] for key in keys)

    for group in ("task", "model"):
        limits.check_sizes(config[group], group)
    limits.check_objective(config["objective"])
    limits.check_trainer(config["trainer"])
    if config["trainer"]["kind"] == "descent":
        build.build_optimiser(config["trainer"])
    key = jax.random.key(config["seed"])
    one_layer = config["model"]["layers"] == 1
    if like is not None and same("task", "model"):
        task, model, optimum = like.task, like.model, like.optimum
    else:
        task, model = build.build_task(config["task"]), build.build_model(config["model"])
        limits.check_analysis(config["analysis"], task)
        optimum = comparison.closed_form(task, model) if one_layer else None
    initial = build.build_weights(config["trainer"], config["model"], task, model, key)
    if config["precision"] == "float32":
        initial = _in_float32(initial, config["trainer"]["kind"])
    if like is not None and same("task", "model", "objective", "seed"):
        objective = like.objective
    else:
        objective = build.build_objective(config["objective"], task, model, config["model"]["layers"], key)
    return Prepared(config, key, task, model, objective, initial, optimum)


def train(problem: Prepared, checkpoint: Path | None = None) -> TrainingResult:
    """Train one problem by itself."""
    trainer = problem.config["trainer"]
    return build.train(trainer, problem.objective, problem.initial, problem.key, checkpoint)


def evaluation(config: Mapping[str, Any]) -> str:
    """What says on which prompts and with which estimators a run is compared; equal for runs that `finish` takes together."""
    return json.dumps([config[key] for key in ("task", "model", "analysis", "precision")], sort_keys=True)


@phase("evaluating")
def finish(problems: Sequence[Prepared], results: Sequence[TrainingResult]) -> list[Simulation]:
    """Compare trained problems of one `evaluation`, at most `TOGETHER`, with theory and the estimators on the same prompts."""
    first = problems[0]
    settings, length = first.config["analysis"], first.task.context_length
    key = stream(jax.random.key(settings["seed"]), "evaluation")
    step_size, preconditioner = comparison.best_linear_steps(first.task, stream(key, "steps"), settings["prompts"])
    lengths = limits.context_lengths(settings["context_lengths"], length)
    models = [eqx.Partial(_answer, first.model, result.limit) for result in results]
    # Three programs instead of one for every number of models.
    models += [models[-1]] * (min(n for n in (1, AT_ONCE, TOGETHER) if n >= len(models)) - len(models))
    tables = _tables(first, models, lengths, (step_size, preconditioner), stream(key, "prompts"))
    steps = (step_size, preconditioner)
    trained = zip(problems, results, tables[: len(problems)], strict=True)
    return [_simulation(problem, result, table, lengths, steps) for problem, result, table in trained]


def _tables(first: Prepared, models: list[analysis.Predictor], lengths: list[int], best: Steps, key: Key) -> Tables:
    """For each model the numbers of the comparison at every length, on condensed prompts where it reads no others."""
    task, settings = first.task, first.config["analysis"]
    # One layer of linear attention is a few numbers a prompt beside the Gram matrix that all share.
    together = min(len(models), AT_ONCE) if _is_light(first) else 1
    short = condensed(task, lengths) if _reads_gram_matrices(first) else None
    if short is None:
        estimators = comparison.predictors(task, *best, settings["ridge_penalty"])
        longest, sequence = task.with_context_length(lengths[-1]), comparison.is_sequence(task)
        return measure(longest, models, estimators, lengths, key, settings["prompts"], sequence=sequence, together=together)
    estimators = comparison.predictors(task, *best, comparison.penalty_matrix(task, settings["ridge_penalty"]))
    means = comparison.MEANS if getattr(first.model, "normaliser", None) == "none" else ("model", *comparison.MEANS)
    return measure_condensed(short, models, estimators, lengths, key, settings["prompts"], means=means, together=together)


def _is_light(problem: Prepared) -> bool:
    return (
        isinstance(problem.model, LinearSelfAttention)
        and problem.model.is_single_pass
        and problem.config["model"]["layers"] == 1
    )


def _reads_gram_matrices(problem: Prepared) -> bool:
    """Whether the model reads the examples through one sum over them, divided by their number or not."""
    model = problem.model
    return _is_light(problem) and isinstance(model, LinearSelfAttention) and model.embedding == "merged" and not model.causal


def _simulation(problem: Prepared, result: TrainingResult, table: Table, lengths: list[int], steps: Steps) -> Simulation:
    metrics = {
        "verdict": result.verdict.value,
        "reason": result.reason,
        "warnings": assumption_warnings(problem.config, problem.task),
        "training": _training_metrics(result, problem.objective),
        **_comparison_metrics(problem, result.limit, table, lengths, steps),
    }
    status = _status(result, problem.config["trainer"]["kind"])
    return Simulation(status, problem.task, problem.model, problem.initial, result, problem.optimum, metrics)


def assumption_warnings(config: Mapping[str, Any], task: Task) -> list[str]:
    """Sentences about a start outside the assumption of the theorem it comes from; training goes on all the same."""
    if config["trainer"]["init"] == "gaussian" or not isinstance(task, tasks.LinearRegression):
        return []
    if not isinstance(task.covariates, tasks.Gaussian):
        return []
    try:
        theory.zhang2023.check_initialisation(config["trainer"]["init_scale"], np.asarray(task.covariance), task.context_length)
    except AssumptionError as outside:
        return [str(outside)]
    return []


def _status(result: TrainingResult, kind: str) -> str:
    # A descent makes the steps it was asked for and has no other end; a flow that runs out of steps has not arrived.
    finished = result.verdict is Verdict.CONVERGED or (kind == "descent" and result.verdict is Verdict.MAX_STEPS)
    return "done" if finished else result.verdict.value


def _in_float32(weights: Weights, kind: str) -> Weights:
    if kind == "gradient_flow":
        raise InvalidValueError(
            "precision=float32 is for descents; trainer=gradient_flow integrates in float64, since a stiff flow "
            "does not arrive in float32. Use precision=float64."
        )
    return jax.tree.map(lambda w: np.asarray(w, np.float32), weights)


def _training_metrics(result: TrainingResult, objective: Objective) -> dict[str, Any]:
    evidence = result.evidence
    loss = "sampled" if isinstance(objective, SampledLoss) else "streamed" if isinstance(objective, StreamedLoss) else "exact"
    return {
        "objective": loss,
        "method": result.method,
        "time": result.time,
        "steps": result.steps,
        "seconds": result.seconds,
        "loss": evidence.loss,
        "initial_loss": evidence.initial_loss,
        "gradient_norm": evidence.gradient_norm,
        "estimated_weight_error": evidence.estimated_weight_error,
        "smallest_curvature": evidence.smallest_curvature,
        "held_out": _held_out(objective, result.limit) if isinstance(objective, SampledLoss) else None,
    }


def _held_out(objective: SampledLoss, limit: Weights) -> dict[str, Any]:
    """Why the loss is sampled, and the risk on prompts that it was not fitted to."""
    held_out = objective.held_out(limit)
    return {
        "sampled_because": objective.reason,
        "said": str(held_out),
        "risk": held_out.risk,
        "standard_error": held_out.standard_error,
        "gap": held_out.gap,
        "gap_error": held_out.gap_error,
        "largest_share": held_out.largest_share,
    }


def _comparison_metrics(problem: Prepared, limit: Weights, table: Table, lengths: list[int], best: Steps) -> dict[str, Any]:
    """The table of the run (the model and every estimator at the training length) and the risks at other lengths."""
    task = problem.task
    step_size, preconditioner = best
    rows = table[task.context_length]
    rows["model"] = {"risk": problem.objective.risk(limit), "standard_error": problem.objective.standard_error(limit)}
    steps = {"gradient_descent": step_size * np.eye(task.dim), "preconditioned_gradient_descent": preconditioner}
    for name, matrix in steps.items():
        rows[name] |= _exact_risk(task, matrix)
        distance = _preconditioner_distance(problem, limit, matrix)
        if distance is not None:
            rows[name]["weight_distance"] = distance
    return {
        "theory": _theory_metrics(problem, limit),
        "step_size": step_size,
        "preconditioner": preconditioner,
        "comparison": rows,
        "risk_curve": {
            "context_lengths": lengths,
            "risk": {name: [table[n][name]["risk"] for n in lengths] for name in rows},
            "standard_error": {name: [table[n][name]["standard_error"] for n in lengths] for name in rows},
            "closed_form": None if problem.optimum is None else [_exact_risk_at(problem, n) for n in lengths],
        },
    }


def _answer(model: Learner, weights: Weights, prompt: Prompt) -> Array:
    return model(weights, prompt)


def _theory_metrics(problem: Prepared, limit: Weights) -> dict[str, Any] | None:
    """The closed form, and the error of everything that is compared with it after the gauge is fixed."""
    if problem.optimum is None:
        return None
    errors = analysis.compare(limit, problem.optimum, problem.model, problem.task.context_length).errors
    # One number for the pair of matrices: the larger relative error; several heads have a gauge that mixes them.
    distance = max(errors[name] for name in ("preconditioner", "w_pv", "w_kq") if name in errors)
    return {
        "name": problem.optimum.name,
        "source": problem.optimum.source,
        "risk": problem.optimum.risk,
        "weight_distance": distance,
        "errors": errors,
    }


def _preconditioner_distance(problem: Prepared, limit: Weights, matrix: np.ndarray) -> float | None:
    """Relative distance of the model's effective preconditioner from `matrix`; None for a model that has none."""
    try:
        learned = analysis.effective_preconditioner(limit, problem.model, problem.task.context_length)
    except UnsupportedProblemError:
        return None
    return float(np.linalg.norm(learned - matrix) / np.linalg.norm(matrix))


def _exact_risk(task: Task, preconditioner: np.ndarray) -> dict[str, float]:
    """Risk of a preconditioned step on linear regression of known moments, which needs no sampling; nothing for other tasks."""
    cases = comparison.problems(task)
    return {"risk": comparison.step_risk(cases, preconditioner), "standard_error": 0.0} if cases else {}


def _exact_risk_at(problem: Prepared, length: int) -> float:
    """Risk of the closed form on prompts of another length; a plain sum grows with the length, a mean does not."""
    assert problem.optimum is not None
    plain_sum = getattr(problem.model, "normaliser", None) == "none"
    scale = length / problem.task.context_length if plain_sum else 1.0
    return _exact_risk(problem.task.with_context_length(length), scale * np.asarray(problem.optimum.preconditioner))["risk"]
