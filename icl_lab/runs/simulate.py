"""One training run in memory: build the objects, train, compare; `runs.execute` stores what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from icl_lab import analysis, tasks, theory
from icl_lab.config import build
from icl_lab.errors import AssumptionError, InvalidValueError, UnsupportedProblemError
from icl_lab.models import SelfAttention
from icl_lab.objectives import Objective, SampledLoss, StreamedLoss
from icl_lab.prng import stream
from icl_lab.runs import comparison
from icl_lab.runs.measure import measure
from icl_lab.tasks.prompt import Prompt, Task, check_count
from icl_lab.theory import Optimum
from icl_lab.training import TrainingResult, Verdict
from icl_lab.typing import Array, Key, Weights


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
    model: SelfAttention
    initial: Weights
    training: TrainingResult
    optimum: Optimum | None
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Trained:
    """What the comparison is made of."""

    task: Task
    model: SelfAttention
    objective: Objective
    weights: Weights
    optimum: Optimum | None


def simulate(config: Mapping[str, Any], show_progress: bool = False, checkpoint: Path | None = None) -> Simulation:
    """Train and compare as a resolved configuration says. Call it inside `precision.float64()`.

    With `checkpoint`, a descent that was interrupted goes on from that file.

    Raises:
      IclLabError: the configuration describes no valid problem.
    """
    key = jax.random.key(config["seed"])
    task = build.build_task(config["task"])
    model = build.build_model(config["model"])
    initial = build.build_weights(config["trainer"], config["model"], task, model, key)
    if config["precision"] == "float32":
        initial = _in_float32(initial, config["trainer"]["kind"])
    objective = build.build_objective(config["objective"], task, model, config["model"]["layers"], key)
    result = build.train(config["trainer"], objective, initial, key, show_progress, checkpoint)
    optimum = comparison.closed_form(task, model) if config["model"]["layers"] == 1 else None
    trained = _Trained(task, model, objective, result.limit, optimum)
    metrics = {
        "verdict": result.verdict.value,
        "reason": result.reason,
        "warnings": assumption_warnings(config, task),
        "training": _training_metrics(result, objective),
        **_comparison_metrics(config, trained, stream(key, "evaluation")),
    }
    return Simulation(_status(result, config["trainer"]["kind"]), task, model, initial, result, optimum, metrics)


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
    }


def _comparison_metrics(config: Mapping[str, Any], trained: _Trained, key: Key) -> dict[str, Any]:
    """The table of the run (the model and every estimator at the training length) and the risks at other lengths."""
    task, settings, length = trained.task, config["analysis"], trained.task.context_length
    step_size, preconditioner = comparison.best_linear_steps(task, stream(key, "steps"), settings["prompts"])
    others = comparison.predictors(task, step_size, preconditioner, settings["ridge_penalty"])
    lengths = _context_lengths(settings["context_lengths"], length)
    longest = build.build_task({**config["task"], "context_length": lengths[-1]})
    table = measure(
        longest,
        eqx.Partial(_answer, trained.model, trained.weights),
        others,
        lengths,
        stream(key, "prompts"),
        settings["prompts"],
        sequence=comparison.is_sequence(task),
    )
    rows = table[length]
    rows["model"] = {
        "risk": trained.objective.risk(trained.weights),
        "standard_error": trained.objective.standard_error(trained.weights),
    }
    steps = {"gradient_descent": step_size * np.eye(task.dim), "preconditioned_gradient_descent": preconditioner}
    for name, matrix in steps.items():
        rows[name] |= _exact_risk(task, matrix)
        distance = _preconditioner_distance(trained, matrix)
        if distance is not None:
            rows[name]["weight_distance"] = distance
    return {
        "theory": _theory_metrics(trained),
        "step_size": step_size,
        "preconditioner": preconditioner,
        "comparison": rows,
        "risk_curve": {
            "context_lengths": lengths,
            "risk": {name: [table[n][name]["risk"] for n in lengths] for name in rows},
            "standard_error": {name: [table[n][name]["standard_error"] for n in lengths] for name in rows},
            "closed_form": None if trained.optimum is None else [_exact_risk_at(trained, n) for n in lengths],
        },
    }


def _answer(model: SelfAttention, weights: Weights, prompt: Prompt) -> Array:
    return model(weights, prompt)


def _context_lengths(asked: list[int] | None, length: int) -> list[int]:
    """The lengths of the risk curve, increasing, that of training among them."""
    if asked is None:
        asked = [max(1, length // 4), max(1, length // 2), 2 * length, 4 * length]
    for n in asked:
        check_count(n, "analysis.context_lengths", 1, "A prompt shows at least one example.")
    return sorted({*asked, length})


def _theory_metrics(trained: _Trained) -> dict[str, Any] | None:
    """The closed form, and the error of everything that is compared with it after the gauge is fixed."""
    if trained.optimum is None:
        return None
    errors = analysis.compare(trained.weights, trained.optimum, trained.model, trained.task.context_length).errors
    # One number for the pair of matrices: the larger relative error; several heads have a gauge that mixes them.
    distance = max(errors[name] for name in ("preconditioner", "w_pv", "w_kq") if name in errors)
    return {
        "name": trained.optimum.name,
        "source": trained.optimum.source,
        "risk": trained.optimum.risk,
        "weight_distance": distance,
        "errors": errors,
    }


def _preconditioner_distance(trained: _Trained, matrix: np.ndarray) -> float | None:
    """Relative distance of the model's effective preconditioner from `matrix`; None for a model that has none."""
    try:
        learned = analysis.effective_preconditioner(trained.weights, trained.model, trained.task.context_length)
    except UnsupportedProblemError:
        return None
    return float(np.linalg.norm(learned - matrix) / np.linalg.norm(matrix))


def _exact_risk(task: Task, preconditioner: np.ndarray, length: int | None = None) -> dict[str, float]:
    """Risk of a preconditioned step on Gaussian regression, which needs no sampling; nothing for other tasks."""
    if not (isinstance(task, tasks.LinearRegression) and isinstance(task.covariates, tasks.Gaussian)):
        return {}
    parameters = theory.lsa.gaussian_parameters(task)
    risk = theory.lsa.risk(preconditioner, *parameters, task.context_length if length is None else length)
    return {"risk": risk, "standard_error": 0.0}


def _exact_risk_at(trained: _Trained, length: int) -> float:
    """Risk of the closed form on prompts of another length; a plain sum grows with the length, a mean does not."""
    assert trained.optimum is not None
    plain_sum = getattr(trained.model, "normaliser", None) == "none"
    scale = length / trained.task.context_length if plain_sum else 1.0
    return _exact_risk(trained.task, scale * np.asarray(trained.optimum.preconditioner), length)["risk"]
