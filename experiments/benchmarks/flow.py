"""Time of a solver step of exact gradient flow against d, and the exponent of its growth.

    python experiments/benchmarks/flow.py [--quick] [-o flow.json]

Linear regression with covariances that do not commute, N = 2 d. The flow runs in the eigenbases of the problem, where a
gradient is elementwise; "every weight" is the flow that a start outside of the invariant subspace needs, whose gradient is a
chain of d x d products. A step of a small problem costs what it costs to make any step, so a tiny size and one beyond 200 are
measured too, and the time is fitted as fixed + factor * d^exponent besides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common
import equinox as eqx
import jax
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from icl_lab import objectives, tasks, theory, training
from icl_lab.core import precision
from icl_lab.core.typing import Weights
from icl_lab.models import LinearSelfAttention
from icl_lab.models.initializers import zhang
from icl_lab.objectives.objective import Objective
from icl_lab.training.segment import Stop, integrate
from icl_lab.training.solver import chosen_solver, first_step_size, step_tolerance

_integrate = eqx.filter_jit(integrate)
STEPS = 128
"""Solver steps of a stretch that is timed."""


def problem(dim: int) -> tuple[Objective, Weights, tasks.LinearRegression]:
    """Exact loss and start for two covariances with condition numbers 5 and 7 that do not commute."""
    lam = tasks.spectra.from_spectrum(np.geomspace(1.0, 0.2, dim), tasks.spectra.random_rotation(dim, 0))
    om = tasks.spectra.from_spectrum(np.geomspace(2.0, 0.3, dim), tasks.spectra.random_rotation(dim, 1))
    task = tasks.LinearRegression(dim=dim, context_length=2 * dim, covariance=lam, task_covariance=om, noise_std=0.3)
    return objectives.population(task, LinearSelfAttention()), zhang(dim, 0.1), task


def stretch(objective: Objective, state: Weights, solver: str) -> Callable[[], object]:
    """A stretch of `STEPS` solver steps, which nothing stops."""
    never = Stop(-1.0, np.inf, -np.inf)
    numbers = [np.float64(x) for x in (0.0, 1e15, first_step_size(1.0, 1.0))]
    rtol = np.float64(step_tolerance(None, solver, 1e-8, objective))
    state = jax.tree.map(lambda w: np.asarray(w, np.float64), state)

    def go():
        return jax.block_until_ready(_integrate(objective, state, *numbers, never, rtol, solver, STEPS, False))

    assert int(go().steps) == STEPS
    return go


def step_growth(quick: bool) -> dict[str, Any]:
    """Seconds per step in eigenbases and over every weight."""
    dims = (5, 25, 100) if quick else (5, 25, 50, 100, 200, 400)
    asked = [dim for dim in dims if 25 <= dim <= 200]
    problems = {dim: problem(dim) for dim in dims}
    with precision.float64():
        restricted = [objective.coordinates(start)[:2] for objective, start, *_ in (problems[dim] for dim in dims)]
        solvers = [chosen_solver("auto", *pair) for pair in restricted]
        programs = [stretch(*pair, solver) for pair, solver in zip(restricted, solvers, strict=True)]
        programs += [stretch(*problems[dim][:2], "tsit5") for dim in asked]
        seconds = [total / STEPS for total in common.medians_in_turns(programs, 3 if quick else 9)]
    rows = [
        {"d": dim, "solver": solver, "eigenbases_seconds": second}
        for dim, solver, second in zip(dims, solvers, seconds, strict=False)
    ]
    first = [row for row in rows if row["d"] in asked]
    for row, second in zip(first, seconds[len(dims) :], strict=True):
        row["every_weight_seconds"] = second
    fixed, factor, power = fixed_and_power(rows, "eigenbases_seconds")
    return {
        "exponent_eigenbases_25_to_200": common.exponent(first, "d", "eigenbases_seconds"),
        "exponent_eigenbases_less_fixed": power,
        "fixed_seconds": fixed,
        "factor_seconds": factor,
        "exponent_every_weight_25_to_200": common.exponent(first, "d", "every_weight_seconds"),
        "peak_mb": common.peak_megabytes(),
        "rows": rows,
    }


def fixed_and_power(rows: common.Rows, quantity: str) -> tuple[float, float, float]:
    """fixed, factor and exponent of quantity = fixed + factor * d^exponent, by least squares of relative errors."""
    sizes, values = (np.asarray([row[name] for row in rows]) for name in ("d", quantity))

    def error(parameters):
        fixed, factor, power = np.exp(parameters[0]), np.exp(parameters[1]), parameters[2]
        return np.log((fixed + factor * sizes**power) / values)

    fit = least_squares(error, [np.log(values[0]), np.log(values[-1] / sizes[-1] ** 2), 2.0])
    return float(np.exp(fit.x[0])), float(np.exp(fit.x[1])), float(fit.x[2])


def whole_flow(quick: bool) -> dict[str, Any]:
    """A flow to its limit: seconds, steps, and distance of the limit from the closed form."""
    rows = []
    for dim in (25, 50) if quick else (25, 50, 100, 200):
        objective, start, task = problem(dim)
        started = time.perf_counter()
        result = training.gradient_flow(objective, start)
        first = time.perf_counter() - started
        best = theory.lsa.optimum(task).preconditioner
        product = result.limit.w_pv[-1, -1] * result.limit.w_kq[:dim, :dim].T
        seconds = common.median_seconds(lambda a=objective, b=start: training.gradient_flow(a, b), 3)
        rows.append(
            {
                "d": dim,
                "seconds_with_compilation": first,
                "seconds": seconds,
                "steps": result.steps,
                "seconds_per_step": seconds / result.steps,
                "relative_weight_error": float(np.linalg.norm(product - best) / np.linalg.norm(best)),
                "verdict": result.verdict.value,
            }
        )
    return {"exponent_seconds_per_step": common.exponent(rows, "d", "seconds_per_step"), "rows": rows}


def draw(figure: Figure, results: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Seconds per step, and those of whole flows."""
    left, right = figure.subplots(1, 2)
    growing = results["step_growth"]
    every = [row for row in growing["rows"] if "every_weight_seconds" in row]
    sizes = np.asarray([row["d"] for row in growing["rows"]], dtype=np.float64)
    power = growing["exponent_eigenbases_less_fixed"]
    fitted = growing["fixed_seconds"] + growing["factor_seconds"] * sizes**power
    common.growth(left, every, "d", {"every_weight_seconds": "every weight"}, (2.0, 3.3))
    common.growth(left, growing["rows"], "d", {"eigenbases_seconds": "in eigenbases"}, ())
    left.plot(sizes, fitted, color="black", linewidth=1, label=f"fixed + factor · d^{power:.2f}")
    left.legend()
    left.set(xlabel="d", ylabel="seconds", title="one solver step")
    rows = results["whole_flow"]["rows"]
    common.growth(right, rows, "d", {"seconds": "flow to its limit"}, ())
    right.set(xlabel="d", ylabel="seconds", title="whole flow, without compilation")
    caption = (
        "Exact gradient flow for covariances that do not commute. In eigenbases a step is elementwise, and for small d costs "
        f"what any step costs: d^{growing['exponent_eigenbases_25_to_200']:.2f} from d = 25 to {every[-1]['d']}. Over every "
        f"weight it is a chain of matrix products: d^{growing['exponent_every_weight_25_to_200']:.2f}."
    )
    names = ("d", "eigenbases_seconds", "every_weight_seconds")
    return caption, {name: [row[name] for row in growing["rows"] if name in row] for name in names}


if __name__ == "__main__":
    common.run(
        "Time of a solver step of exact gradient flow against d.",
        {
            "A solver step of exact flow (covariances that do not commute, N = 2 d)": step_growth,
            "Exact flow to its limit": whole_flow,
        },
        draw,
    )
