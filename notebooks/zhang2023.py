# %% [markdown]
# # Trained transformers learn linear models in context
#
# Zhang, Frei, Bartlett, *Trained Transformers Learn Linear Models In-Context*
# ([arXiv 2306.09927](https://arxiv.org/abs/2306.09927), JMLR 25(49), 2024). One layer of linear self-attention is trained
# by gradient flow on prompts of linear regression. The loss is not convex, and yet the paper proves where the flow goes,
# what the trained layer answers on prompts of any length and distribution, and where it must fail.
#
# **Setting.** A prompt has its own task $w \sim N(0, I_d)$, inputs $x_i, x_q \sim N(0, \Lambda)$ and labels
# $y_i = \langle w, x_i\rangle$, $i = 1 \dots N$. With the tokens $(x_i, y_i)$ and $(x_q, 0)$ as the columns of $E$, the
# layer adds $W_{PV} E\, E^\top W_{KQ} E / N$ to $E$, and $\hat y$ is the last entry of the last column. The loss is
# $L = \tfrac12\,\mathbb E(\hat y - \langle w, x_q\rangle)^2$ and training is $\dot W = -\nabla L(W)$, the expectation being
# over all prompts: here it is an exact polynomial of the weights, and nothing below is trained on samples.

# %%
import icl_lab

cache = icl_lab.enable_cache()  # compiled programs are kept for the next run; before JAX is imported

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from icl_lab import analysis, models, objectives, report, tasks, theory, training
from icl_lab.claims import verify
from icl_lab.models import initializers

d, N = 3, 10
covariance = np.diag([2.0, 1.0, 0.5])
identity = np.eye(d)
model = models.LinearSelfAttention()


def regression(length, **distribution):
    """The running example on prompts of some length, by default with its own covariance."""
    return tasks.LinearRegression(dim=d, context_length=length, **(distribution or {"covariance": covariance}))


# %% [markdown]
# ## Theorem 4.1: where gradient flow goes
#
# **Start (Assumption 3.3).** $W_{PV}(0) = \sigma\, e e^\top$,
# $W_{KQ}(0) = \sigma \operatorname{diag}(\Theta\Theta^\top, 0)$, with $e$ the last unit vector,
# $\|\Theta\Theta^\top\|_F = 1$ and $\Theta\Lambda \ne 0$. Put
#
# $$\Gamma = \Big(1 + \frac1N\Big)\Lambda + \frac{\operatorname{tr}\Lambda}{N}\, I .$$
#
# **Claim.** If $\sigma^2 \|\Gamma\|_{op} \sqrt d < 2$, then
#
# $$W_{PV}(t) \to \|\Gamma^{-1}\|_F^{1/2}\; e e^\top, \qquad
#   W_{KQ}(t) \to \|\Gamma^{-1}\|_F^{-1/2} \operatorname{diag}(\Gamma^{-1}, 0), \qquad
#   \hat y = x_q^\top\, \Gamma^{-1}\, \frac1M \sum_{i=1}^M y_i x_i$$
#
# on a prompt of any length $M$. *Why:* for long contexts $\frac1N\sum y_i x_i \approx \Lambda w$, and
# $\Gamma \approx \Lambda$ inverts it. A short context makes that average noisy, most of all in directions of small
# variance, and the term $\operatorname{tr}(\Lambda)/N$ of $\Gamma$ shrinks the answer there: the layer has learned how far
# to trust ten examples.

# %%
theta = np.asarray(initializers.random_theta(jax.random.key(0), d))
sigma = 0.1
print(f"sigma = {sigma}; the theorem admits anything below {theory.zhang2023.largest_init_scale(covariance, N):.4f}")

loss = objectives.population(regression(N), model)
flow = training.gradient_flow(loss, initializers.zhang(d, sigma, theta), weight_tolerance=1e-10)
print(f"{flow.verdict.name}: {flow.reason}\n")
agreement = analysis.compare(flow.limit, theory.zhang2023.optimum(regression(N)), tolerance=1e-9)
assert agreement.passed
print(agreement)

with report.house_style():
    figure, row = plt.subplots(1, 4, figsize=(8, 2.0), layout="constrained")
    largest = np.max(np.abs(flow.limit.w_kq))
    row[0].imshow(flow.trajectory.at(0).w_kq, vmin=-sigma, vmax=sigma)
    row[0].set(title="$W_{KQ}(0)$", xticks=[], yticks=[])
    row[0].grid(False)
    report.heat_maps(row[1:], flow.limit.w_kq, theory.zhang2023.limit(covariance, N)[1], "$W_{KQ}$")
    plt.show()

# %% [markdown]
# A random $\Theta$ at the start (left, on a colour scale of its own) leaves no trace: the learned matrix is the closed
# form, the zeros included. The last panel is their difference, on a scale of its own; it is the error of the solver. The
# same as a claim, where the flow is free to move all 32 entries of both matrices:

# %%
entries = verify.run(["zhang2023.thm4.1"])
assert verify.all_passed(entries)
report.check_table(entries)

# %% [markdown]
# ## Why it converges although the loss is not convex
#
# On the start only two things ever move, the corner $u$ of $W_{PV}$ and the block $U$ of $W_{KQ}$ (Lemma 5.2):
#
# $$\dot U = u\,\Lambda^2 - u^2\,\Gamma\Lambda U\Lambda, \qquad
#   \dot u = \operatorname{tr}\!\big[\Lambda^2 U^\top - u\,\Gamma\Lambda U\Lambda U^\top\big].$$
#
# - **Balance** (Lemma A.3): $u^2 - \|U\|_F^2$ is conserved, and zero at the start. It picks one point of the curve
#   $uU = \Gamma^{-1}$ of minimisers, which is why the limits of $W_{PV}$ and $W_{KQ}$ themselves are known.
# - **Distance from the saddle** (Lemmas A.4, A.5): the loss starts below that of zero weights and can only fall, so $u$
#   stays above a positive bound.
# - **PL inequality** (Lemma 5.4): there, $\|\nabla L\|^2 \ge \mu\,(L - \min L)$ with an explicit $\mu > 0$, as strong
#   convexity would give. So the gap falls at least like $e^{-\mu t}$ and the flow has no other place to stop.

# %%
product = theta @ theta.T
path = flow.trajectory
u, inner = path.weights.w_pv[:, -1, -1], path.weights.w_kq[:, :d, :d]
gaps = path.losses - theory.zhang2023.optimum(regression(N)).risk / 2
resolved = gaps > 1e-9
mu = theory.zhang2023.pl_constant(sigma, covariance, N, product)
times = np.concatenate([[0.0], np.geomspace(0.05, path.times[-1], 200)])

with report.house_style():
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8.6, 3.1), layout="constrained")
    for colour, scale in enumerate((1e-1, 1e-2, 1e-3)):
        one = training.gradient_flow(loss, initializers.zhang(d, scale)).trajectory
        half = theory.timecourse.plateau_time(theory.Problem.of(regression(N)), scale, identity / np.sqrt(d), 0.5)
        early = one.times < 6
        left.plot(one.times[early], one.losses[early], "o", markersize=3, label=f"$\\sigma$ = {scale:g}")
        left.axvline(half, color=f"C{colour}", linestyle=":")
    left.axhline(theory.zhang2023.optimum(regression(N)).risk / 2, color="black")
    left.set(xlabel="flow time $t$", ylabel="half loss $L$", title="escape from the saddle", ylim=(0.3, None))
    left.legend()
    middle.plot(path.times, u, "o", markersize=3, label="$u(t)$")
    middle.plot(times, theory.zhang2023.reduced_flow(sigma, covariance, N, product, times)[0], color="black", label="Lemma 5.2")
    middle.axhline(theory.zhang2023.scale_lower_bound(sigma, covariance, N, product), color="C1", label="lower bound")
    middle.set(xscale="log", xlabel="flow time $t$", title="corner of $W_{PV}$", xlim=(0.05, None))
    middle.legend(loc="center right")
    ratio = path.gradient_norms[resolved] ** 2 / gaps[resolved]
    right.plot(path.times[resolved], ratio, "o", markersize=3, label=r"$\|\nabla L\|^2 / (L - \min L)$")
    right.axhline(mu, color="C1", label=f"$\\mu$ = {mu:.2g}")
    right.set(yscale="log", xlabel="flow time $t$", title="PL inequality", ylim=(mu / 3, 300))
    right.legend()
    plt.show()

print(f"balance: |u^2 - |U|_F^2| <= {np.max(np.abs(u**2 - np.sum(inner**2, axis=(1, 2)))):.1g} along the whole flow")

# %% [markdown]
# Left: each flow (here from $\Theta\Theta^\top = I/\sqrt d$) rests at the saddle and then drops; dotted, the predicted time
# at which $u$ has half of its limit, $\ln(1/\sigma)/\|\Lambda^2\|_F$ plus a constant, so that a tenth of the scale costs
# the same time again (black: the minimum). Middle: $u$ on the solution of the reduced equations, never below its bound.
# Right: the PL ratio never comes near its bound, which is a proof device and not a rate.

# %%
entries = verify.run(
    [f"zhang2023.{name}" for name in ("asm3.3", "lemA.3", "lemA.4-A.5", "lem5.4", "lemA.1", "corA.2", "lem5.3")]
)
assert verify.all_passed(entries)
report.verified_table(entries)

# %% [markdown]
# ## Theorem 4.2: the error after $M$ examples, for any labels
#
# Test the trained layer on pairs $(x, y)$ of *any* distribution with $x \sim N(0, \Lambda)$: nothing need be linear. With
# $a = \Lambda^{-1}\mathbb E[xy]$ and $\Sigma = \operatorname{Cov}(xy)$,
#
# $$\mathbb E(\hat y - y_q)^2 = \underbrace{\min_w \mathbb E(\langle w, x_q\rangle - y_q)^2}_{\text{best linear predictor}}
#   + \underbrace{\frac1M \operatorname{tr}[\Sigma\,\Gamma^{-2}\Lambda]}_{\text{test context}}
#   + \underbrace{\frac1{N^2}\, a^\top\Gamma^{-2}\Lambda\,\big(\Lambda + \operatorname{tr}(\Lambda) I\big)^2 a}_{
#     \text{training context}} .$$
#
# *Why:* the answer is the mean of $M$ independent terms, hence a variance of order $1/M$; its expectation is
# $x_q^\top \Gamma^{-1}\Lambda a$ instead of $x_q^\top a$, hence a squared bias of order $1/N^2$, which no test prompt is
# long enough to remove. First for linear labels, averaged over $w$:

# %%
trained_at, tested_at = (8, 32, 128), (1, 4, 16, 64, 1024)
fine = np.geomspace(1, 1024, 50)
tests = [objectives.population(regression(m), model) for m in tested_at]

with report.house_style():
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for colour, n in enumerate(trained_at):
        limit = training.gradient_flow(objectives.population(regression(n), model), initializers.zhang(d, sigma)).limit
        risks = [test.risk(limit) for test in tests]
        axes.plot(fine, [theory.zhang2023.risk(covariance, n, m) for m in fine], color=f"C{colour}")
        axes.plot(tested_at, risks, "o", color=f"C{colour}", label=f"trained at $N$ = {n}")
        axes.axhline(theory.zhang2023.risk(covariance, n, np.inf), color=f"C{colour}", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="test length $M$", ylabel=r"risk $E(\hat y - \langle w, x_q\rangle)^2$")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    plt.show()

# %% [markdown]
# Dots are exact risks of trained weights, lines the formula, dotted lines its floors at $M = \infty$. A longer test prompt
# helps up to the floor of the training length; four times the training length lowers the floor by up to a factor of
# sixteen.
#
# Now labels that no linear model makes: $y = g(\langle w, x\rangle)$ with $w = (1, -\frac12, 2)$, at $M = 6$. These errors
# are means over 100 000 prompts and are judged by their standard errors (`icl-lab verify zhang2023.thm4.2` draws eight
# times as many).

# %%
entries = verify.run(["zhang2023.thm4.2"], {"samples": 100_000, "s2": 0.0})
assert verify.all_passed(entries)
report.check_table(entries)

# %%
entries = verify.run(["zhang2023.thm4.2-linear"])
assert verify.all_passed(entries)
report.verified_table(entries)

# %% [markdown]
# ## Shifts: which ones it survives
#
# Multiply by $c$, at test time only, the **task** ($w \to cw$), the **query** ($x_q \to c\,x_q$), or **all inputs**
# ($x_i, x_q \to c\,x$). The layer computes $\hat y = x_q^\top\Gamma^{-1}\frac1M\sum y_i x_i$, which is linear in the labels
# and linear in the query: both of the first two shifts scale the answer as they scale the truth, and the error can only
# grow like $c^2$. It is quadratic in the context's inputs, and $\Gamma^{-1}$ belongs to the training inputs: under the
# third shift the answer is $c^3$ times what it was and the truth $c$ times, so that the error grows like $c^6$.

# %%
factors = np.array([0.25, 0.5, 1.0, 2.0, 3.0])
task = np.array([1.0, -0.5, 2.0])
outer = np.outer(task, task)
preconditioner = analysis.effective_preconditioner(flow.limit, model)
# Each shift as powers of c: of the task, of the context's inputs, of the query.
shifts = {"task": (1, 0, 0), "query": (0, 0, 1), "all inputs": (0, 1, 1)}


def shifted_errors(weights, prompt):
    """Squared errors on one prompt, under every shift (a row) by every factor."""

    def error(factor, powers):
        of_task, of_context, of_query = factor ** jnp.asarray(powers)
        shifted = tasks.Prompt(
            inputs=of_context * prompt.inputs,
            labels=of_task * of_context * prompt.labels,
            query=of_query * prompt.query,
            target=of_task * of_query * prompt.target,
        )
        return jnp.sum((model(weights, shifted) - shifted.target) ** 2)

    return jnp.stack([jax.vmap(lambda factor, p=powers: error(factor, p))(jnp.asarray(factors)) for powers in shifts.values()])


fixed_task = regression(N, covariance=covariance, task_covariance=outer)
sampled, _ = analysis.sample_mean(eqx.Partial(shifted_errors, flow.limit), fixed_task, jax.random.key(1), prompts=50_000)

with report.house_style():
    figure, row = plt.subplots(1, 3, figsize=(8, 3.0), layout="constrained", sharey=True)
    fine = np.geomspace(factors[0], factors[-1], 60)
    for axes, (name, (of_task, of_context, of_query)), mean, error in zip(
        row, shifts.items(), sampled.mean, sampled.standard_error, strict=True
    ):
        exact = [
            theory.lsa.risk(
                theory.Problem(c ** (2 * of_context) * covariance, c ** (2 * of_task) * outer, 0.0, N),
                preconditioner,
                query_moment=c ** (2 * of_query) * covariance,
            )
            for c in fine
        ]
        axes.plot(fine, exact, color="black", label="exact")
        axes.errorbar(factors, mean, 2 * error, fmt="o", capsize=2, label="trained layer")
        axes.set(title=f"{name} times $c$", xscale="log", yscale="log", xlabel="$c$")
        axes.set_xticks(factors, labels=[f"{c:g}" for c in factors])
        axes.minorticks_off()
    row[0].set_ylabel("risk")
    row[0].legend(loc="upper left")
    plt.show()

# %% [markdown]
# Dots: the trained layer on 50 000 simulated prompts, with two standard errors; lines: the exact risk. The first two have
# slope 2. The third breaks: inputs twice as large are worse than no answer at all.

# %%
entries = verify.run(["zhang2023.shift-covariate"], {"samples": 20_000})
assert verify.all_passed(entries)
report.verified_table(entries)

# %% [markdown]
# ## Theorem 4.5: random covariances, where one layer fails
#
# So train on many covariances: each prompt draws its own diagonal $\Lambda_\tau$. Gradient flow still converges, to the
# preconditioner
#
# $$R = \mathbb E[\Gamma_\tau\Lambda_\tau^2]^{-1}\, \mathbb E[\Lambda_\tau^2], \qquad
#   \Gamma_\tau = \Big(1 + \frac1N\Big)\Lambda_\tau + \frac{\operatorname{tr}\Lambda_\tau}{N}\, I .$$
#
# *Why it fails:* the right matrix for a prompt is $\Lambda_\tau^{-1}$, and the layer has one matrix for all prompts. $R$ is
# the best compromise, and the error that it leaves does not go away with context length. Least squares, which inverts the
# covariance of the prompt in front of it, is exact from $d$ examples on.

# %%
values = np.array([[0.5, 2.0], [1.0, 3.0], [0.2, 1.0]])
probabilities = np.array([[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]])
distribution = tasks.FiniteDiagonal(values, probabilities)
mean = np.diag(np.sum(values * probabilities, axis=1))

support, shares = distribution.support()

n, lengths, scales = 128, (4, 16, 64, 1024), np.array([0.5, 1.0, 2.0, 4.0, 8.0])
preconditioners, risks, shifted = {}, {}, {}
for name, settings in (("random", {"covariates": distribution}), ("fixed", {"covariance": mean})):
    objective = objectives.population(regression(n, **settings), model)
    limit = training.gradient_flow(objective, initializers.zhang(d, sigma), weight_tolerance=1e-10).limit
    preconditioners[name] = analysis.effective_preconditioner(limit, model)
    risks[name] = [objectives.population(regression(m, **settings), model).risk(limit) for m in lengths]
    scaled = [regression(n, covariates=tasks.FiniteDiagonal(c * values, probabilities)) for c in scales]
    shifted[name] = [objectives.population(test, model).risk(limit) for test in scaled]

moments = theory.random_covariance.diagonal_moments(values, probabilities, n)
expected = {
    "random": theory.random_covariance.preconditioner(moments),
    "fixed": theory.lsa.optimal_preconditioner(theory.Problem(mean, identity, 0.0, n)),
}
for name, matrix in expected.items():
    gap = np.linalg.norm(preconditioners[name] - matrix) / np.linalg.norm(matrix)
    assert gap < 1e-9
    print(f"trained on {name} covariances: relative distance of the preconditioner from the closed form {gap:.0e}")


def mixed_risk(matrix, length, scale=1.0):
    """Risk of a preconditioner on the random covariances times a scale: the mean over their support."""
    problems = [theory.Problem(scale * np.diag(spectrum), identity, 0.0, length) for spectrum in support]
    return shares @ np.array([theory.lsa.risk(problem, matrix) for problem in problems])


with report.house_style():
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    fine = np.geomspace(lengths[0], lengths[-1], 60)
    left.plot(fine, [mixed_risk(expected["random"], m) for m in fine])
    left.plot(fine, [theory.lsa.risk(theory.Problem(mean, identity, 0.0, m), expected["fixed"]) for m in fine])
    left.axhline(mixed_risk(expected["random"], np.inf), color="C0", linestyle=":")
    for colour, name in enumerate(risks):
        left.plot(lengths, risks[name], "o", color=f"C{colour}", label=f"{name} covariances")
    left.set(xscale="log", yscale="log", xlabel="test length $M$", ylabel="risk", title="on the training distribution")
    left.legend(loc="lower left")
    fine = np.geomspace(scales[0], scales[-1], 60)
    for colour, name in enumerate(shifted):
        right.plot(fine, [mixed_risk(expected[name], n, c) for c in fine], color=f"C{colour}")
        right.plot(scales, shifted[name], "o", color=f"C{colour}", label=f"trained on {name} covariances")
    right.plot(fine, np.trace(mean) * fine, color="0.5", linestyle="--", label="answer 0")
    right.set(xscale="log", yscale="log", xlabel="scale $c$ of the test covariances", ylabel="risk")
    right.set_title("on random covariances times $c$")
    right.set_xticks(scales, labels=[f"{c:g}" for c in scales])
    right.minorticks_off()
    right.legend(loc="upper left")
    plt.show()

# %% [markdown]
# Trained layers (dots, exact risks) on the formulas (lines), $N = 128$. Left: with a fixed covariance the risk falls like
# $1/M$; with random ones it stops at the dotted floor. Right: training on random covariances, instead of on their mean,
# buys a little robustness, but beyond twice the variance the layer is still worse than answering 0. The paper draws
# eigenvalues that are exponential with mean 1; then $R \to \frac13 I$ for long contexts, since
# $\mathbb E\lambda^2 / \mathbb E\lambda^3 = \frac13$, and exactly one third of the label's variance is never explained
# (`icl-lab verify zhang2023.residual`).

# %%
entries = verify.run(["zhang2023.thm4.5", "zhang2023.lemC.5-C.8"], {"N": n})
assert verify.all_passed(entries)
report.verified_table(entries)

# %% [markdown]
# ## Beyond this page
#
# The paper's other results are claims as well: the quadratic form of the prediction (`zhang2023.setup`,
# `zhang2023.lem5.1`), the reduced equations with and without random covariances (`zhang2023.lem5.2`, `zhang2023.lemC.1`,
# `zhang2023.corC.2`, `zhang2023.lemC.4`), how many examples are enough (`zhang2023.cor4.3`), the rates in $N$ and $M$
# (`zhang2023.asymptotics`), least squares beside the layer (`zhang2023.vs-ols`), tasks and queries of any distribution
# (`zhang2023.shift-task`, `zhang2023.shift-query`), exponential covariances (`zhang2023.residual`).
#
# ```bash
# icl-lab verify 'zhang2023.*'                          # every result of the paper
# icl-lab verify 'zhang2023.*' --set d=4 --set N=17     # at sizes of your own
# icl-lab verify lab.global-min lab.spurious-minima     # all weights, not only the structured ones: other minima exist
# icl-lab verify lab.rotated-covariance                 # random eigenvectors as well
# icl-lab verify zhang2023.fig1                         # trains softmax transformers under shift; some ten minutes
# python experiments/zhang2023.py                       # the figures as files, with their numbers
# ```
