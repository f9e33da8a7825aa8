"""Speed of the lab's core, as ratios to a plain per-prompt SGD loop, all measured in one run.

    python experiments/benchmarks/core.py [--quick] [-o results.json]

Machines are noisy, so every time is a median of several and what matters is the ratio: exact gradient flow against the SGD
loop that it replaces, sampled moments against drawing their random numbers, growth with d, memory against prompts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from icl_lab import objectives, precision, tasks, theory, training
from icl_lab.models import LinearSelfAttention
from icl_lab.models.initializers import zhang
from icl_lab.objectives.curvature import norm

REPEATS = 5


def median_seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of `function` after one call that compiles."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sgd_loop(dim: int, context_length: int, steps: int, learning_rate: float, seed: int = 0) -> tuple[float, np.ndarray]:
    """The baseline: one prompt at a time through the literal (d+1) x (N+1) embedding in numpy, gradient by hand.

    Returns seconds per prompt and the learned effective preconditioner.
    """
    rng = np.random.default_rng(seed)
    width = dim + 1
    w_pv, w_kq = np.zeros((width, width)), np.zeros((width, width))
    w_pv[-1, -1] = 0.1
    w_kq[:dim, :dim] = 0.1 * np.eye(dim) / np.sqrt(dim)
    started = time.perf_counter()
    for step in range(steps):
        task = rng.normal(size=dim)
        inputs = rng.normal(size=(context_length + 1, dim))
        tokens = np.concatenate([inputs, (inputs @ task)[:, None]], axis=1)
        tokens[-1, -1] = 0.0
        scores = tokens @ w_kq @ tokens.T  # the N x N attention matrix
        output = (w_pv @ tokens.T @ scores) / context_length
        error = output[-1, -1] - inputs[-1] @ task
        attended = tokens.T @ tokens @ w_kq @ tokens[-1] / context_length
        row = w_pv[-1] @ tokens.T @ tokens / context_length
        rate = learning_rate / (1 + 4 * step / steps)
        w_pv[-1] -= rate * error * attended
        w_kq -= rate * error * np.outer(row, tokens[-1])
    return (time.perf_counter() - started) / steps, w_pv[-1, -1] * w_kq[:dim, :dim].T


def flow_against_sgd(quick: bool) -> dict[str, float]:
    """Seconds and weight error of exact flow and of SGD on one prompt at a time, d = 5, N = 20."""
    dim, length = 5, 20
    task = tasks.LinearRegression(dim=dim, context_length=length)
    best = theory.zhang2023.optimum(task).preconditioner
    steps = 2_000 if quick else 20_000
    per_prompt, learned = sgd_loop(dim, length, steps, 2e-3)
    loss, start = objectives.population(task, LinearSelfAttention()), zhang(dim, 0.1)
    started = time.perf_counter()
    result = training.gradient_flow(loss, start)
    first = time.perf_counter() - started
    seconds = median_seconds(lambda: training.gradient_flow(loss, start))
    product = result.limit.w_pv[-1, -1] * result.limit.w_kq[:dim, :dim].T
    return {
        "sgd_seconds_per_prompt": per_prompt,
        "sgd_prompts": steps,
        "sgd_relative_weight_error": float(np.linalg.norm(learned - best) / np.linalg.norm(best)),
        "flow_first_seconds": first,
        "flow_seconds": seconds,
        "flow_relative_weight_error": float(np.linalg.norm(product - best) / np.linalg.norm(best)),
        "sgd_over_flow_seconds": per_prompt * steps / seconds,
    }


def covariance_pair(dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two covariances with condition numbers 5 and 7 that do not commute."""
    return (
        tasks.spectra.from_spectrum(np.geomspace(1.0, 0.2, dim), tasks.spectra.random_rotation(dim, seed)),
        tasks.spectra.from_spectrum(np.geomspace(2.0, 0.3, dim), tasks.spectra.random_rotation(dim, seed + 1)),
    )


def flow_growth(quick: bool) -> dict[str, object]:
    """Exact flow for non-commuting covariances: seconds, error, and cost of a solver step against d."""
    dims = [25, 50, 100] if quick else [25, 50, 100, 200]
    rows = []
    for dim in dims:
        lam, om = covariance_pair(dim)
        task = tasks.LinearRegression(dim=dim, context_length=2 * dim, covariance=lam, task_covariance=om, noise_std=0.3)
        loss, start = objectives.population(task, LinearSelfAttention()), zhang(dim, 0.1)
        started = time.perf_counter()
        result = training.gradient_flow(loss, start)
        first = time.perf_counter() - started
        best = theory.lsa.optimum(task).preconditioner
        product = result.limit.w_pv[-1, -1] * result.limit.w_kq[:dim, :dim].T
        with precision.float64():
            weights = jax.tree.map(jnp.asarray, start)
            gradient = jax.jit(jax.grad(loss))
            full = median_seconds(lambda f=gradient, w=weights: jax.block_until_ready(f(w)), 20)
        rows.append(
            {
                "dim": dim,
                "seconds_with_compilation": first,
                "seconds_per_step": median_seconds(lambda a=loss, b=start: training.gradient_flow(a, b), 3) / result.steps,
                "seconds_full_gradient": full,
                "relative_weight_error": float(np.linalg.norm(product - best) / np.linalg.norm(best)),
                "verdict": result.verdict.value,
            }
        )

    def exponent(name: str) -> float:
        return float(np.polyfit(np.log(dims), np.log([row[name] for row in rows]), 1)[0])

    return {
        "rows": rows,
        "exponent_flow_step": exponent("seconds_per_step"),
        "exponent_full_gradient": exponent("seconds_full_gradient"),
    }


def moments_rate(quick: bool) -> dict[str, float]:
    """Prompts per second of sampled moments (d = 5, N = 20, float64) against drawing the random numbers alone."""
    dim, length, prompts, batch = 5, 20, 100_000 if quick else 400_000, 5_000
    task, key = tasks.LinearRegression(dim=dim, context_length=length), jax.random.key(0)
    numbers = (length + 1) * dim + dim

    with precision.float64():

        @jax.jit
        def draw(key):
            def add(total, index):
                return total + jnp.sum(jax.random.normal(jax.random.fold_in(key, index), (batch, numbers))), None

            return jax.lax.scan(add, jnp.zeros(()), jnp.arange(prompts // batch))[0]

        drawing = median_seconds(lambda: draw(key).block_until_ready())
    built = objectives.SampledLoss.build(task, LinearSelfAttention(), key, prompts)
    seconds = median_seconds(lambda: objectives.SampledLoss.build(task, LinearSelfAttention(), key, prompts))
    per_prompt, _ = sgd_loop(dim, length, 500, 1e-3)
    return {
        "prompts": built.prompts,
        "prompts_per_second": built.prompts / seconds,
        "random_numbers_alone_prompts_per_second": prompts / drawing,
        "ratio_to_random_numbers": (built.prompts / seconds) / (prompts / drawing),
        "ratio_to_sgd_loop": (built.prompts / seconds) * per_prompt,
    }


def moments_memory(quick: bool) -> dict[str, float]:
    """Peak memory before and after sampling ever more prompts: flat, since only moments are kept."""
    task, model, key = tasks.LinearRegression(dim=5, context_length=20), LinearSelfAttention(), jax.random.key(1)
    peaks = {}
    for prompts in (10_000, 100_000, 1_000_000) if quick else (10_000, 1_000_000, 10_000_000):
        loss = objectives.SampledLoss.build(task, model, key, prompts, progress=True)
        assert np.isfinite(norm(loss.cross))
        peaks[f"peak_mb_after_{prompts}"] = peak_megabytes()
    return peaks


def show(console: Console, title: str, values: dict[str, object]) -> None:
    """A table of one benchmark."""
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in values.items():
        if name == "rows":
            continue
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    rows = values.get("rows")
    if isinstance(rows, list):
        grid = Table()
        for name in rows[0]:
            grid.add_column(name.replace("_", " "), justify="right")
        for row in rows:
            grid.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
        console.print(grid)


def main() -> None:
    """Run every benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    console, results = Console(), {}
    for title, benchmark in (
        ("Exact flow against a per-prompt SGD loop (d = 5, N = 20)", flow_against_sgd),
        ("Exact flow for non-commuting covariances (N = 2 d)", flow_growth),
        ("Sampled moments (d = 5, N = 20, float64)", moments_rate),
        ("Memory of sampled moments", moments_memory),
    ):
        results[benchmark.__name__] = benchmark(arguments.quick)
        show(console, title, results[benchmark.__name__])
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
