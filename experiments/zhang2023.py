"""Figures of Zhang, Frei, Bartlett 2023 (arXiv 2306.09927): the flow, its limit, and the error at any length and any shift.

python experiments/zhang2023.py [-o figures/zhang2023]          about a minute on two cores
"""

from __future__ import annotations

from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from icl_lab import analysis, objectives, tasks, theory, training
from icl_lab.core import precision
from icl_lab.models import LinearSelfAttention
from icl_lab.models.initializers import zhang
from icl_lab.report.figures import heat_maps
from icl_lab.report.style import save

# The running example: three input directions of different variance, ten examples.
COVARIANCE = np.diag([2.0, 1.0, 0.5])
DIM, LENGTH = 3, 10
MODEL = LinearSelfAttention()


def regression(length: int = LENGTH, covariance=COVARIANCE, task_covariance=None) -> tasks.LinearRegression:
    """The running example with another length, input distribution or task distribution."""
    return tasks.LinearRegression(dim=DIM, context_length=length, covariance=covariance, task_covariance=task_covariance)


def trained(length: int, scale: float = 0.1, times=None) -> training.TrainingResult:
    """Exact gradient flow to its limit."""
    return training.gradient_flow(objectives.population(regression(length), MODEL), zhang(DIM, scale), times=times)


def convergence(folder: Path) -> None:
    """Loss along the flow for several initial scales, and the predicted time of escape from the plateau."""
    theta, problem = np.eye(DIM) / np.sqrt(DIM), theory.Problem(COVARIANCE, np.eye(DIM), 0.0, LENGTH)
    minimum = theory.lsa.minimum_risk(problem) / 2
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes, numbers = figure.subplots(), {}
    for colour, scale in enumerate((0.1, 1e-2, 1e-3, 1e-4)):
        predicted = theory.timecourse.plateau_time(problem, scale, theta, 0.5)
        times = np.linspace(0.0, 2.5 * predicted + 3.0, 200)
        path = trained(LENGTH, scale, times).trajectory
        losses = path.losses[: len(times)]
        axes.plot(times, losses, color=f"C{colour}", label=f"initial scale {scale:g}")
        axes.axvline(predicted, color=f"C{colour}", linestyle=":")
        numbers |= {f"time {scale:g}": times, f"loss {scale:g}": losses, f"predicted half time {scale:g}": [predicted]}
    axes.axhline(minimum, color="0.5", linewidth=1, label="global minimum, closed form")
    axes.set(xlabel="flow time t", ylabel="half loss")
    axes.legend()
    save(
        figure,
        folder / "convergence.png",
        "Each curve rests on the plateau of the saddle at zero and then drops in one step. Dotted: the predicted time at which "
        "u has half of its limit, ln(1/scale) / |Lambda^2| plus a constant; a tenth of the scale costs the same time again.",
        numbers,
    )


def learned_matrices(folder: Path) -> None:
    """The learned matrices beside the closed form."""
    limit, (w_pv, w_kq) = trained(LENGTH).limit, theory.zhang2023.limit(COVARIANCE, LENGTH)
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    rows = figure.subplots(2, 3)
    heat_maps(rows[0], limit.w_pv, w_pv, "W_PV")
    heat_maps(rows[1], limit.w_kq, w_kq, "W_KQ")
    save(
        figure,
        folder / "matrices.png",
        "Left and middle columns look the same: the flow ends at the closed form, zeros included. The right column is the "
        "difference, on a scale of its own; it is the error of the solver.",
        {"learned W_PV": limit.w_pv, "closed W_PV": w_pv, "learned W_KQ": limit.w_kq, "closed W_KQ": w_kq},
    )


def lengths(folder: Path) -> None:
    """Error of trained layers against the test length M, for several training lengths N."""
    trained_at, tested_at = (5, 10, 40, 160), np.unique(np.geomspace(1, 1000, 13).astype(int))
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes, numbers = figure.subplots(), {"M": tested_at}
    for colour, length in enumerate(trained_at):
        limit = trained(length).limit
        measured = [objectives.population(regression(int(m)), MODEL).risk(limit) for m in tested_at]
        exact = [theory.zhang2023.risk(COVARIANCE, length, int(m)) for m in tested_at]
        floor = theory.zhang2023.risk(COVARIANCE, length, np.inf)
        axes.plot(tested_at, exact, color=f"C{colour}")
        axes.plot(tested_at, measured, "o", color=f"C{colour}", label=f"trained at N = {length}")
        axes.axhline(floor, color=f"C{colour}", linestyle=":", linewidth=1)
        numbers |= {f"measured N={length}": measured, f"exact N={length}": exact}
    axes.set(xscale="log", yscale="log", xlabel="test length M", ylabel="risk E|yhat - w.x|²")
    axes.legend()
    save(
        figure,
        folder / "lengths.png",
        "Points: trained weights on prompts of length M; lines: the exact risk. It falls like 1/M towards a floor (dotted) "
        "that only a longer training context lowers, like 1/N².",
        numbers,
    )


def shifts(folder: Path) -> None:
    """Error of the trained layer under shifts of task, query and covariates, simulated and exact."""
    limit = trained(LENGTH).limit
    preconditioner = analysis.effective_preconditioner(limit, MODEL, LENGTH)
    factors = np.array([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
    task = np.array([1.0, -0.5, 2.0])
    kinds = {
        "task w -> c w": lambda c: (COVARIANCE, COVARIANCE, c**2 * np.outer(task, task)),
        "query x_q -> c x_q": lambda c: (COVARIANCE, c**2 * COVARIANCE, np.outer(task, task)),
        "all inputs x -> c x": lambda c: (c**2 * COVARIANCE, c**2 * COVARIANCE, np.outer(task, task)),
    }
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    row, numbers = figure.subplots(1, 3), {"c": factors}
    for axes, (name, distribution) in zip(row, kinds.items(), strict=True):
        fine = np.geomspace(factors[0], factors[-1], 60)
        curve = [_exact_risk(preconditioner, *distribution(c)) for c in fine]
        simulated = np.array([_simulated_risk(limit, *distribution(c)) for c in factors])
        axes.plot(fine, curve, color="black", label="exact")
        axes.errorbar(factors, simulated[:, 0], 2 * simulated[:, 1], fmt="o", capsize=2, label="trained layer, simulated")
        axes.set(title=name, xscale="log", yscale="log", xlabel="c")
        axes.set_xticks(factors, labels=[f"{c:g}" for c in factors])
        axes.minorticks_off()
        numbers |= {f"simulated {name}": simulated[:, 0], f"error {name}": simulated[:, 1]}
        numbers |= {f"c {name}": fine, f"exact {name}": curve}
    row[0].set_ylabel("risk")
    row[0].legend(loc="upper left")
    save(
        figure,
        folder / "shifts.png",
        "A layer that is one preconditioned gradient step follows any task (slope 2: its error is quadratic in w) and any "
        "query, but its preconditioner is that of the training inputs: scaled inputs break it, with an error like c^6.",
        numbers,
    )


def _exact_risk(preconditioner, covariance, query_moment, task_covariance) -> float:
    return theory.lsa.risk(theory.Problem(covariance, task_covariance, 0.0, LENGTH), preconditioner, query_moment)


@jax.jit
def _squared_errors(weights, root, query_root, task_root, key):
    """Squared errors of the literal forward pass on prompts with the given covariance roots."""

    def one(key):
        keys = jax.random.split(key, 3)
        inputs, query, task = (jax.random.normal(k, (n, DIM)) for k, n in zip(keys, (LENGTH, 1, 1), strict=True))
        inputs, query, vector = inputs @ root, (query @ query_root)[0], (task @ task_root)[0]
        target = (query @ vector)[None]
        prompt = tasks.Prompt(inputs=inputs, labels=(inputs @ vector)[:, None], query=query, target=target, latent=vector)
        return jnp.sum((MODEL(weights, prompt) - target) ** 2)

    return jax.vmap(one)(jax.random.split(key, 100_000))


def _simulated_risk(weights, covariance, query_moment, task_covariance) -> tuple[float, float]:
    with precision.float64():
        roots = [np.linalg.cholesky(matrix).T for matrix in (covariance, query_moment)]
        # A fixed task, up to its sign, is a rank-one covariance.
        values, vectors = np.linalg.eigh(task_covariance)
        roots.append(np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T)
        errors = np.asarray(_squared_errors(weights, *roots, jax.random.key(0)))
    return float(errors.mean()), float(errors.std(ddof=1) / np.sqrt(len(errors)))


def main() -> None:
    """Draw every figure, with its numbers beside it."""
    with common.figures(common.folder_argument("zhang2023", __doc__)) as folder:
        for figure in track((convergence, learned_matrices, lengths, shifts), "zhang2023"):
            figure(folder)


if __name__ == "__main__":
    main()
