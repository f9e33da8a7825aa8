"""Figures of Mahankali, Hashimoto, Ma 2023 (arXiv 2307.03576): risk against length, and steps for nonlinear labels.

python experiments/mahankali2023.py [-o figures/mahankali2023]          about three minutes on two cores
"""

from __future__ import annotations

from pathlib import Path

import common
import equinox as eqx
import jax
import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from icl_lab import analysis, estimators, objectives, tasks, theory, training
from icl_lab.models import LinearSelfAttention
from icl_lab.models.initializers import zhang
from icl_lab.report.style import save

DIM, NOISE = 5, 4.0
"""A noise variance at which the layer beats least squares on a visible range of lengths."""
MODEL = LinearSelfAttention(query_in_sum=False)


def risks(folder: Path) -> None:
    """Risk of the trained layer, least squares, ridge and Bayes against the context length, with the crossover."""
    lengths = (7, 8, 10, 13, 16, 20, 26, 40, 80)
    fine = np.arange(DIM + 2, lengths[-1] + 1)
    measured: dict[str, list[float]] = {"layer": [], "OLS": [], "OLS error": [], "ridge": [], "ridge error": []}
    for length in lengths:
        task = tasks.LinearRegression(dim=DIM, context_length=length, noise_std=np.sqrt(NOISE))
        objective = objectives.population(task, MODEL)
        measured["layer"].append(objective.risk(training.gradient_flow(objective, zhang(DIM, 0.1)).limit))
        predictors = {"OLS": estimators.ols, "ridge": eqx.Partial(_ridge)}
        simulated = analysis.sampled_risks(task, predictors, jax.random.key(length), 200_000)
        for name in predictors:
            measured[name].append(simulated[name].mean)
            measured[f"{name} error"].append(simulated[name].standard_error)
    exact = {
        "layer": [theory.mahankali2023.minimum_risk(DIM, int(n), NOISE) for n in fine],
        "OLS": [theory.bayes.ols_risk(DIM, int(n), NOISE) for n in fine],
        "ridge": [theory.bayes.isotropic_risk(DIM, int(n), NOISE) for n in fine],
    }
    crossover = theory.bayes.longest_winning_context(DIM, NOISE)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    names = {"layer": "trained layer", "OLS": "least squares", "ridge": "ridge with penalty s2 (Bayes)"}
    for colour, (name, label) in enumerate(names.items()):
        axes.plot(fine, exact[name], color=f"C{colour}")
        error = 2 * np.asarray(measured.get(f"{name} error", np.zeros(len(lengths))))
        axes.errorbar(lengths, measured[name], error, fmt="o", capsize=2, color=f"C{colour}", label=label)
    axes.axvline(crossover, color="0.5", linestyle=":", label=f"predicted crossover, N = {crossover:.3g}")
    axes.set(xscale="log", yscale="log", xlabel="context length N", ylabel="excess risk")
    axes.set_xticks(lengths, labels=[str(n) for n in lengths])
    axes.minorticks_off()
    axes.legend()
    save(
        figure,
        folder / "risks.png",
        f"d = {DIM}, noise variance {NOISE:g}. Lines are exact, points are trained or simulated. One step of gradient descent "
        "beats least squares on short contexts, up to the predicted crossover, and never reaches Bayes: its risk keeps an "
        "extra (d + 1) d / N.",
        {"N": lengths, **measured, "N exact": fine, **{f"{name} exact": values for name, values in exact.items()}},
    )


def _ridge(prompt: tasks.Prompt):
    return estimators.ridge(prompt, NOISE)


def step_sizes(folder: Path) -> None:
    """The step that a layer learns on nonlinear responses, beside its closed form."""
    dim, length, noise = 3, 6, 0.25
    cube, square, sign = tasks.Monomial(3), tasks.Monomial(2), tasks.Sign()
    families = {
        "w·x": tasks.Linear(),
        "ReLU network, K = 4": tasks.ReLUNetwork(4),
        "sign(u·x)": tasks.SingleIndex(sign),
        "(u·x)³": tasks.SingleIndex(cube),
        "cos(w·x + φ)": tasks.RandomCosine(),
        "±(u·x)²": tasks.SingleIndex(square, random_sign=True),
    }
    learned, errors, closed = [], [], []
    for family in families.values():
        task = tasks.NonlinearRegression(dim=dim, context_length=length, response=family, noise_std=np.sqrt(noise))
        closed.append(theory.nonlinear.step_size(family.moments(dim), dim, length, noise))
        steps = [_learned_step(task, key) for key in jax.random.split(jax.random.key(0), 5)]
        learned.append(float(np.mean(steps)))
        errors.append(float(np.std(steps, ddof=1) / np.sqrt(len(steps))))
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(families))
    axes.bar(places, closed, width=0.6, color="0.85", label="closed form")
    axes.errorbar(places, learned, 2 * np.asarray(errors), fmt="o", capsize=3, label="trained layer")
    axes.set_xticks(places, labels=list(families), rotation=20, ha="right")
    axes.set_ylabel("step size eta of the sum")
    axes.legend()
    save(
        figure,
        folder / "step_sizes.png",
        f"d = {dim}, n = {length}, noise variance {noise:g}. Whatever the responses, the layer learns one gradient step; its "
        "size falls with the part of the response that is not linear, to zero for even functions. Intervals: two standard "
        "errors over five samples of 50000 prompts.",
        {"learned": learned, "standard error": errors, "closed form": closed},
    )


def _learned_step(task: tasks.NonlinearRegression, key) -> float:
    """eta of the layer trained on sampled moments."""
    objective = objectives.SampledLoss.build(task, MODEL, key, prompts=50_000)
    limit = training.gradient_flow(objective, zhang(task.dim, 0.1), weight_tolerance=1e-6).limit
    preconditioner = analysis.effective_preconditioner(limit, MODEL, task.context_length)
    return float(np.trace(preconditioner)) / task.dim / task.context_length


def main() -> None:
    """Draw every figure, with its numbers beside it."""
    with common.figures(common.folder_argument("mahankali2023", __doc__)) as folder:
        for figure in track((risks, step_sizes), "mahankali2023"):
            figure(folder)


if __name__ == "__main__":
    main()
