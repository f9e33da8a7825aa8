# %% [markdown]
# # Quickstart: train a transformer, watch it become gradient descent
#
# Show a transformer twenty examples $(x_i, y_i)$ of a linear function that it has never met, and a new input $x_q$. It
# answers well, although no weight changes while it reads. *Which algorithm is it running?*
#
# For one layer of linear attention there is a theorem, and this page runs it: the loss is computed exactly, training is an
# ordinary differential equation, and the trained weights agree with a formula to more than nine digits.

# %%
import icl_lab

cache = icl_lab.enable_cache()  # compiled programs are kept for the next run; before JAX is imported

# %%
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np

from icl_lab import analysis, models, objectives, report, tasks, theory, training
from icl_lab.analysis.evaluation import comparison
from icl_lab.claims import verify
from icl_lab.core import precision

# %% [markdown]
# ## A task, a model, a loss
#
# Every prompt has a secret $w \sim N(0, I)$ of its own. Its inputs are $x \sim N(0, \Lambda)$, here in five dimensions with
# neighbours correlated by 0.6, and its labels $y_i = w \cdot x_i + \text{noise}$. The answer wanted is $w \cdot x_q$.

# %%
d, N = 5, 20
coordinate = np.arange(d)
covariance = 0.6 ** np.abs(coordinate[:, None] - coordinate)
task = tasks.LinearRegression(dim=d, context_length=N, covariance=covariance, noise_std=0.5)
model = models.LinearSelfAttention()

with precision.float64():
    prompt = task.sample(jax.random.key(6))
    tokens = np.asarray(model.tokens(prompt))

with report.house_style():
    figure, axes = plt.subplots(figsize=(8, 2.2), layout="constrained")
    image = axes.imshow(tokens.T, vmin=-3, vmax=3)
    axes.axhline(d - 0.5, color="black", linewidth=1)
    axes.axvline(N - 0.5, color="black", linewidth=1)
    axes.text(N, d, "?", ha="center", va="center")
    axes.set_xticks([0, N // 2 - 1, N], labels=["1", str(N // 2), "query"])
    axes.set_yticks(range(d + 1), labels=[*(f"$x^{{({j})}}$" for j in range(1, d + 1)), "$y$"])
    axes.set(title="one prompt: a column is a token", xlabel="position in the context")
    axes.grid(False)
    figure.colorbar(image, ax=axes, fraction=0.02)
    plt.show()

# %% [markdown]
# The prompt is a matrix $E$ with a token $(x_i, y_i)$ a column and $(x_q, 0)$ last. One layer of linear self-attention adds
# $W_{PV}\, E E^\top W_{KQ}\, E / N$ to it, and the answer $\hat y$ is read where the question mark was. That makes $\hat y$
# a cubic polynomial of the prompt; prompts are Gaussian; so the loss $L = \tfrac12\, \mathbb E\, (\hat y - w \cdot x_q)^2$,
# averaged over *all* prompts, is a polynomial of the weights that can be written down. No batch, no sampling noise:
# gradient flow $\dot W = -\nabla L(W)$ is integrated like any other equation.

# %%
loss = objectives.population(task, model)
path = training.gradient_flow(loss, models.initializers.zhang(d, 1e-3), weight_tolerance=1e-10)
best = theory.lsa.optimum(task)
print(f"{path.verdict.name}: {path.reason}")

# %% [markdown]
# ## Watch it
#
# Theory says where this must end: at **one step of gradient descent** on the squared error of the examples, started from
# zero and preconditioned by a fixed matrix,
#
# $$\hat y = x_q^\top P\, \frac1N \sum_i y_i x_i, \qquad
#   P^\star = \Big[\big(1 + \tfrac1N\big) \Lambda + \tfrac{\operatorname{tr} \Lambda + s^2}{N}\, I\Big]^{-1}$$
#
# with $s^2$ the variance of the noise. It is almost $\Lambda^{-1}$, held back where twenty examples are too few to trust.
# Here is the matrix $P$ that the weights implement, from the first moment to the last.

# %%
times = path.trajectory.times
learned = [analysis.effective_preconditioner(path.trajectory.at(index), model) for index in range(len(times))]
shown = [int(np.argmin(np.abs(times - time))) for time in (0.0, 0.8, 1.5, 5.0, 20.0)]
frames = {f"$t$ = {times[index]:.2g}": learned[index] for index in shown}
frames |= {"limit": analysis.effective_preconditioner(path.limit, model), "theory": best.preconditioner}

with report.house_style():
    figure, row = plt.subplots(1, len(frames), figsize=(8, 1.6), layout="constrained")
    for axes, (title, matrix) in zip(row, frames.items(), strict=True):
        largest = np.max(np.abs(matrix))
        axes.imshow(matrix, vmin=-largest, vmax=largest)
        axes.set(title=title, xticks=[], yticks=[], xlabel=f"± {largest:.1g}" if largest < 0.1 else f"± {largest:.2f}")
        axes.grid(False)
    plt.show()

# %% [markdown]
# Red is positive, blue negative; below each frame stands its largest entry, at which the colours end. The flow starts next
# to nothing and leaves along $\Lambda^2$: everything positive, a blur of neighbours. Then it changes its mind. The entries
# beside the diagonal turn negative, which is how a covariance is *inverted*. The last two frames look the same; how much
# the same?

# %%
agreement = analysis.compare(path.limit, best, tolerance=1e-9)
assert agreement.passed
print(agreement)

# %%
step_size, _ = comparison.best_linear_steps(task, jax.random.key(0), prompts=1)
rate = theory.stability.late_rates(theory.Problem.of(task)).slowest


def distance(goal):
    """Relative distance of P(t) from a matrix, at every time."""
    return np.array([np.linalg.norm(matrix - goal) / np.linalg.norm(goal) for matrix in learned])


with report.house_style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    left.plot(times[1:], path.trajectory.losses[1:], "o", markersize=3, label="along the flow")
    left.axhline(best.risk / 2, color="black", label="smallest possible, theory")
    left.set(xscale="log", xlabel="flow time $t$", ylabel="half loss $L$", ylim=(0, None))
    left.legend()
    right.plot(times, distance(best.preconditioner), "o", markersize=3, label="to $P^\\star$")
    right.plot(times, distance(step_size * np.eye(d)), "o", markersize=3, label="to the best plain step $\\eta I$")
    start = np.searchsorted(times, 30.0)
    decay = distance(best.preconditioner)[start] * np.exp(-rate * (times - times[start]))
    right.plot(times, decay, color="black", label=f"$e^{{-{rate:.3f}\\, t}}$, theory")
    right.set(yscale="log", xlabel="flow time $t$", ylabel="relative distance of $P(t)$")
    right.legend(loc="lower left")
    plt.show()

# %% [markdown]
# Left: a plateau near the saddle at zero, a drop, and a tail in which the directions of small variance are learned. Right:
# the weights approach $P^\star$ (blue) exponentially, at the rate that the curvature of the loss predicts, down to the
# accuracy asked of the solver. They pass near plain gradient descent (orange) and move on.

# %% [markdown]
# ## One prompt, five algorithms
#
# The prompt above, answered by the trained transformer and by algorithms that were never trained. Ridge regression with the
# penalty $s^2$ is the Bayes predictor: no algorithm is better on average.

# %%
algorithms = {"trained transformer": eqx.Partial(model, path.limit)} | comparison.predictors(
    task, step_size, best.preconditioner, penalty=None
)
names = {
    "trained transformer": "trained transformer",
    "preconditioned_gradient_descent": "one GD step, preconditioned by P*",
    "gradient_descent": "one GD step of the best size",
    "ridge": "ridge (Bayes)",
    "ols": "least squares",
}
with precision.float64():
    answers = {label: float(algorithms[name](prompt)[0]) for name, label in names.items()}
answers["truth, w . x_q"] = float(prompt.target[0])
trained = answers["trained transformer"]
report.Table(
    ("algorithm", "answer", "away from the transformer's"),
    [(label, f"{answer:.10f}", f"{abs(answer - trained):.1e}") for label, answer in answers.items()],
)

# %% [markdown]
# The transformer and the preconditioned step say the same number. Is that an accident of this prompt? Here is the risk
# $\mathbb E(\hat y - w \cdot x_q)^2$ over many prompts, at the context length of training and at others.

# %%
lengths = (5, 20, 80, 320)
curve = analysis.risk_against_length(
    lambda n: tasks.LinearRegression(dim=d, context_length=n, covariance=covariance, noise_std=0.5),
    lengths,
    {label: algorithms[name] for name, label in names.items() if name != "ols"},
    jax.random.key(1),
    prompts=8192,
)
fine = np.geomspace(lengths[0], lengths[-1], 50)
exact = [theory.lsa.risk(theory.Problem(covariance, np.eye(d), 0.25, n), best.preconditioner) for n in fine]

with report.house_style():
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    columns = dict(zip(curve.names, curve.means.T, strict=True))
    errors = dict(zip(curve.names, curve.standard_errors.T, strict=True))
    report.risk_curves(axes, lengths, columns, errors, trained_at=N)
    axes.plot(fine, exact, color="black", label="closed form", zorder=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    plt.show()

# %% [markdown]
# Dots with intervals of two standard errors are measured, the line is the exact risk of the closed form. The transformer
# (ring) *is* the preconditioned step at every length. It extrapolates, but to a floor: its step was tuned for twenty
# examples. Ridge, which inverts the covariance of each prompt anew, goes on learning. One layer cannot do that; several
# can, see below.

# %% [markdown]
# ## A theorem is a program
#
# All of this is packed into *claims*: each trains or simulates something, puts it beside the formula, and can fail. Here is
# the convergence theorem of Zhang, Frei and Bartlett ([arXiv 2306.09927](https://arxiv.org/abs/2306.09927)) for prompts
# without noise, check by check.

# %%
entries = verify.run(["zhang2023.thm4.1"])
assert verify.all_passed(entries)
report.check_table(entries)

# %% [markdown]
# The same in a shell, at a size of your own, with an exit status that says whether it held:
#
# ```bash
# icl-lab verify zhang2023.thm4.1 --set d=6 --set N=7   # this claim, elsewhere
# icl-lab claims                                        # all of them
# icl-lab verify --jobs 2                               # run them all
# ```
#
# And what this page did by hand is one command, with tables and figures in a run folder:
#
# ```bash
# icl-lab run task.dim=5 task.context_length=20 task.noise_std=0.5
# icl-lab run -m task.context_length=10,20,40,80        # a sweep
# ```
#
# **Where next?** `zhang2023` tells when that theorem holds and when one layer fails; `mahankali2023` asks when this step is
# optimal, and what noise and nonlinear labels do; `ahn2023` and `vonoswald2022` stack layers into many steps; `zheng2024` and
# `zhou2025` leave regression for sequences; `conjecture` shows how to test a claim of your own before you prove it.
