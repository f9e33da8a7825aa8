"""Exact gradient flow against a plain per-prompt SGD loop, both measured in one run.

python experiments/benchmarks/core.py [--quick] [-o core.json]
"""

from __future__ import annotations

import time

import common
import numpy as np

from icl_lab import objectives, tasks, theory, training
from icl_lab.models import LinearSelfAttention
from icl_lab.models.initializers import zhang


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
    seconds = common.median_seconds(lambda: training.gradient_flow(loss, start))
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


if __name__ == "__main__":
    common.run(
        "Exact gradient flow against the per-prompt SGD loop that it replaces.",
        {"Exact flow against a per-prompt SGD loop (d = 5, N = 20)": flow_against_sgd},
    )
