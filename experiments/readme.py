"""What the pages show of the lab: the README's figure (experiments/readme.png) and the list in icl_lab/claims/README.md.

python experiments/readme.py          about half a minute on two cores
"""

from __future__ import annotations

from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_lab import analysis, estimators, objectives, report, tasks, theory, training
from icl_lab.claims import registry
from icl_lab.models import LinearSelfAttention, initializers

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = """# Claims

Every executable statement, written here by `python experiments/readme.py`.

{}
"""
SPECTRUM = [2.0, 1.0, 1.0, 0.5, 0.5]
MODEL = LinearSelfAttention()


def regression(length: int) -> tasks.LinearRegression:
    """Noisy linear regression with anisotropic inputs."""
    return tasks.LinearRegression(dim=5, context_length=length, covariance=SPECTRUM, noise_std=0.5)


def distances(axes: Axes, path: training.TrainingResult, expected: np.ndarray, length: int) -> None:
    """How far the preconditioner of the layer is from the closed form along the flow."""
    each = [path.trajectory.at(index) for index in range(len(path.trajectory.times))]
    learned = np.stack([analysis.effective_preconditioner(weights, MODEL, length) for weights in each])
    gaps = np.linalg.norm(learned - expected, axis=(1, 2)) / np.linalg.norm(expected)
    report.decay(axes, path.trajectory.times, gaps, "distance of P to the closed form")
    axes.set(title="gradient flow on the exact loss")


def diagonals(axes: Axes, learned: np.ndarray, expected: np.ndarray) -> None:
    """The learned preconditioner beside the closed form, on the eigenvalues of the inputs' covariance."""
    axes.plot(SPECTRUM, np.diag(learned), "o", markersize=11, markerfacecolor="none", markeredgewidth=1.6, label="learned")
    axes.plot(SPECTRUM, np.diag(expected), "_", color="black", markersize=14, label="closed form")
    axes.set(title="the step it learned", xlabel="eigenvalue of the inputs' covariance", ylabel="step size along it")
    axes.legend()


def risks(axes: Axes, limit: object, preconditioner: np.ndarray, trained_at: int) -> None:
    """Risk of the trained layer and of estimators against the context length, beside the exact one of the closed form."""
    lengths = (8, 10, 20, 40, 80)
    predictors = {
        "trained layer": eqx.Partial(MODEL, limit),
        "ridge": estimators.named("ridge", penalty=0.25),
        "OLS": estimators.ols,
    }
    curve = analysis.risk_against_length(regression, lengths, predictors, jax.random.key(0), 100_000)
    means, errors = (dict(zip(curve.names, values.T, strict=True)) for values in (curve.means, curve.standard_errors))
    exact = [theory.lsa.risk(theory.Problem.of(regression(n)), preconditioner) for n in lengths]
    report.risk_curves(axes, lengths, means, errors, exact, trained_at)
    axes.set(title="risk at other lengths")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    length = 20
    path = training.gradient_flow(objectives.population(regression(length), MODEL), initializers.zhang(5, 0.1))
    best = theory.lsa.optimum(regression(length))
    with report.house_style():
        figure = Figure(figsize=(10.8, 3.0), layout="constrained")
        flow, step, risk = figure.subplots(1, 3)
        distances(flow, path, best.preconditioner, length)
        diagonals(step, analysis.effective_preconditioner(path.limit, MODEL, length), best.preconditioner)
        risks(risk, path.limit, best.preconditioner, length)
        figure.savefig(ROOT / "experiments" / "readme.png", dpi=160)
    listed = CLAIMS.format(report.claim_sections(registry.listing()))
    (ROOT / "icl_lab" / "claims" / "README.md").write_text(listed, encoding="utf-8")


if __name__ == "__main__":
    main()
