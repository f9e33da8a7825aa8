# %% [markdown]
# # One step of gradient descent is the best that one layer can do
#
# *Mahankali, Hashimoto, Ma 2023, [arXiv 2307.03576](https://arxiv.org/abs/2307.03576)*
#
# A transformer layer sees $n$ solved examples of a linear regression and one unsolved query. It has never seen this task
# before, and its weights do not change. What is the best answer that its architecture allows, and which algorithm is that?
#
# **Setting.** A prompt has inputs $x_1, \dots, x_n, x_q \sim N(0, \Sigma)$ in $\mathbb R^d$, a hidden task vector
# $w \sim N(0, \Sigma^{-1})$, and labels $y_i = w^\top x_i + \varepsilon_i$ with noise of variance $s^2$. The layer is linear
# self-attention: with tokens $e_i = (x_i, y_i)$ and a query token $e_q = (x_q, 0)$,
#
# $$ \hat y = \Big[ \sum_{i \le n} W_{PV}\, e_i \; e_i^\top W_{KQ}\, e_q \Big]_{\text{label}} . $$
#
# Only the label row $(p_1, p_2)$ of $W_{PV}$ and the input columns of $W_{KQ}$, which are $K_1$ ($d \times d$) over the row
# $k_2$, reach the answer. Every layer is therefore a linear predictor whose vector has a part that is even in the labels and
# one that is odd:
#
# $$ \hat y = \Big(\underbrace{K_1^\top S\, p_1 + c\, p_2 k_2}_{\text{even}} + \underbrace{B\, b}_{\text{odd}}\Big)^{\!\top}
# x_q , \qquad B = p_2 K_1^\top + k_2 p_1^\top, $$
#
# with $S = \sum x_i x_i^\top$, $b = \sum y_i x_i$ and $c = \sum y_i^2$. One step of gradient descent from $w = 0$ with step
# size $\eta$ on $\frac12 \sum_i (w^\top x_i - y_i)^2$ is the special case $p_1 = k_2 = 0$, $B = \eta I$.
#
# **Conventions.** As in the paper, sums over the context are *not* divided by $n$. Risks are excess risks,
# $E(\hat y - w^\top x_q)^2$: the noise of the query's own label, which nobody can predict, is left out.

# %%
import icl_lab

cache = icl_lab.enable_cache()  # compiled programs are kept for the next run; before JAX is imported

# %%
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from icl_lab import analysis, estimators, objectives, report, tasks, theory, training
from icl_lab.claims import verify
from icl_lab.models import LinearSelfAttention, LSAWeights, initializers

MODEL = LinearSelfAttention(query_in_sum=False, normaliser="none")  # a plain sum over the examples
AVERAGING = LinearSelfAttention(query_in_sum=False)  # the same functions, divided by n: flows at long contexts are less stiff

# %% [markdown]
# ## Theorem 1: isotropic inputs
#
# > For $\Sigma = I$, every global minimiser of the population loss over **all** entries of the weights computes one step of
# > gradient descent, $\hat y = \eta\, b^\top x_q$, with
# > $$ \eta = \frac{E[b^\top w_{\text{ridge}}]}{E[b^\top b]} = \frac{1}{n + d + 1 + s^2} . $$
#
# Here $w_{\text{ridge}} = (S + s^2 I)^{-1} b$ is the Bayes estimate of $w$. The paper leaves $\eta$ as the ratio of
# expectations; the last form is the same number, evaluated with Gaussian moments. Why is it plausible? The best predictor of
# all is $w_{\text{ridge}}^\top x_q$, and the layer has to come close to it with a vector that is at most cubic in the prompt.
# By symmetry under a change of sign of $w$ and of the noise, the even part can only hurt, and by symmetry under rotations the
# best $B$ is a multiple of the identity: what is left is the projection of $w_{\text{ridge}}$ on $b$.
#
# The experiment: gradient flow on the *exact* population loss (no sampled prompts) from six random starts in which all
# $2(d+1)^2$ entries are free, at $d = 3$, $n = 5$, $s^2 = \frac12$. (The loss is not convex in the weights, and on some
# problems a start ends in a local minimum; here none does.)

# %%
d, n, s2 = 3, 5, 0.5


def train(task, seed, starts=6):
    """Gradient flows from small Gaussian starts of all entries."""
    begin = initializers.gaussian(jax.random.key(seed), task.dim + 1, 0.1 * task.context_length ** (-1 / 3), starts)
    flows = training.gradient_flows(
        objectives.population(task, MODEL), begin, weight_tolerance=1e-9, solver="tsit5", rtol=1e-12
    )
    return flows, flows.limit(flows.best)


isotropic = tasks.LinearRegression(dim=d, context_length=n, noise_std=np.sqrt(s2))
flows, layer = train(isotropic, seed=0)
optimum = theory.mahankali2023.optimum(isotropic)
print("where the starts ended:", ", ".join(flows.outcomes(optimum.risk / 2)))
comparison = analysis.compare(layer, optimum, MODEL, n)
print(comparison)
assert comparison.passed

# %% [markdown]
# The trained layer *is* the step: its preconditioner, and after fixing the scale that $W_{PV}$ and $W_{KQ}$ may trade, both
# matrices agree with the closed form, and all unused blocks vanish. As a step, $n B$ acts on the mean over the examples; the
# learned $B$ itself is

# %%
learned = analysis.effective_preconditioner(layer, MODEL, n) / n
print("learned B =", np.array2string(np.round(learned, 8) + 0.0, prefix="learned B = "))
print(f"eta = 1/(n + d + 1 + s2) = {theory.mahankali2023.step_size(d, n, s2):.8f}")

# %% [markdown]
# ## Theorem 2: anisotropic inputs
#
# > For inputs $N(0, \Sigma)$ and tasks $N(0, \Sigma^{-1})$ the global minimisers compute one step of *preconditioned* gradient
# > descent, $\hat y = \eta\, b^\top \Sigma^{-1} x_q$, with the same $\eta$ as above.
#
# The substitution $x \to \Sigma^{-1/2} x$, $w \to \Sigma^{1/2} w$ turns the problem into the isotropic one, and the layer can
# absorb it in $K_1$. It has to learn $\Sigma^{-1}$ from training: a single prompt with $n = 5$ examples does not tell it. The
# eigenvalues below are 2, 1 and ½ on a random basis.

# %%
rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((d, d)))
inputs = rotation @ np.diag([2.0, 1.0, 0.5]) @ rotation.T
inverse = rotation @ np.diag([0.5, 1.0, 2.0]) @ rotation.T
anisotropic = tasks.LinearRegression(
    dim=d,
    context_length=n,
    covariance=(inputs + inputs.T) / 2,
    task_covariance=(inverse + inverse.T) / 2,
    noise_std=np.sqrt(s2),
)
flows, layer = train(anisotropic, seed=1)
comparison = analysis.compare(layer, theory.mahankali2023.optimum(anisotropic), MODEL, n)
print(comparison)
assert comparison.passed
with report.house_style():
    figure, row = plt.subplots(1, 3, figsize=(8, 2.5), layout="constrained")
    report.heat_maps(row, comparison["preconditioner"].measured / n, comparison["preconditioner"].expected / n, "B")
    plt.show()

# %% [markdown]
# Left: the matrix $B$ of the trained layer. Middle: $\eta\,\Sigma^{-1}$. Right: their difference on a colour scale of its
# own, many orders of magnitude smaller.
#
# Both theorems as checks. Besides weights and risk they estimate the ratio of expectations that defines $\eta$ from 50 000
# sampled prompts (by default 200 000), which must agree with $1/(n+d+1+s^2)$ within four standard errors (its tolerance in
# the table).

# %%
entries = verify.run(["mahankali2023.thm1", "mahankali2023.thm2"], {"samples": 50_000})
display(report.check_table(entries))
assert verify.all_passed(entries)

# %% [markdown]
# ## Why it is true: the loss is a constant plus a squared distance
#
# The proof replaces the loss twice by a distance. Lemma 1: since $w_{\text{ridge}}$ is the conditional mean of $w$, the loss
# of any predictor is the Bayes error plus its mean squared distance to ridge. Lemma 2: seen from any layer, ridge may be
# replaced by one step of gradient descent at the price of a constant,
#
# $$ E(\hat y - w^\top x_q)^2 \;=\; \frac{d\,(d + 1 + s^2)}{n + d + 1 + s^2} \;+\; E(\hat y - \eta\, b^\top x_q)^2
# \qquad \text{for every choice of the weights.} $$
#
# So the loss is smallest exactly where the layer *is* the step. Both sides have closed forms. Below are layers on the way
# from the step to six layers with random weights, at eight points of each way:

# %%
loss = objectives.population(isotropic, MODEL)
step = LSAWeights(w_pv=optimum.w_pv, w_kq=optimum.w_kq)
layers = []
for seed in range(6):
    ways = analysis.interpolate(step, initializers.gaussian(jax.random.key(seed), d + 1, 0.5), np.geomspace(0.01, 1, 8))
    layers += [LSAWeights(*pair) for pair in zip(ways.w_pv, ways.w_kq, strict=True)]
distances = np.array([theory.mahankali2023.distance_to_step(theory.Problem.of(isotropic), w.w_pv, w.w_kq) for w in layers])
excess = np.array([loss.risk(w) for w in layers])
constant = theory.mahankali2023.minimum_risk(d, n, s2)
print(f"largest relative gap between the two sides: {np.max(np.abs(excess - constant - distances) / excess):.0e}")
with report.house_style():
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    fine = np.geomspace(distances.min() / 2, distances.max() * 2)
    axes.plot(fine, constant + fine, color="black", label="constant + distance")
    axes.plot(distances, excess, "o", label="layers between the step and random weights")
    axes.axhline(constant, color="0.5", linestyle=":", label=r"$d\,(d+1+s^2)/(n+d+1+s^2)$")
    axes.set(xscale="log", yscale="log", xlabel="mean squared distance to one GD step", ylabel="excess risk")
    axes.legend(loc="upper left")
    plt.show()

# %% [markdown]
# Every layer lies on the one curve, down to the floor (dotted): to lower the loss is to come closer to gradient descent.

# %%
entries = verify.run(["mahankali2023.lem2", "mahankali2023.parity"])
display(report.verified_table(entries))
assert verify.all_passed(entries)

# %% [markdown]
# ## What one step costs: against least squares, ridge and Bayes
#
# The smallest risk of the layer, $d(d+1+s^2)/(n+d+1+s^2)$, does not depend on $\Sigma$. Least squares has the excess risk
# $s^2 d/(n - d - 1)$, which is infinite at $n = d + 1$ and smaller than the layer's only from
#
# $$ n > d + 1 + 2 s^2 + \frac{s^4}{d + 1} $$
#
# on. With strong noise one careful step beats the exact solution of the normal equations on short contexts. Bayes, which is
# ridge with penalty $s^2$, beats both everywhere; as $n \to \infty$ the layer's risk stays $(d + 1 + s^2)/s^2$ times that of
# Bayes, so that it never becomes optimal. At $d = 5$, $s^2 = 4$ the crossover is between 16 and 17:

# %%
DIM, NOISE = 5, 4.0
lengths = (7, 16, 60)
ridge = eqx.Partial(estimators.ridge, penalty=NOISE)
trained, simulated = [], []
for length in lengths:
    task = tasks.LinearRegression(dim=DIM, context_length=length, noise_std=np.sqrt(NOISE))
    objective = objectives.population(task, AVERAGING)
    trained.append(objective.risk(training.gradient_flow(objective, initializers.zhang(DIM, 0.1)).limit))
    predictors = {"OLS": estimators.ols, "ridge": ridge}
    simulated.append(analysis.sampled_risks(task, predictors, jax.random.key(length), 50_000))

fine = np.unique(np.geomspace(lengths[0], lengths[-1], 24).astype(int))
exact = {
    "OLS": [theory.bayes.ols_risk(DIM, int(k), NOISE) for k in fine],
    "ridge": [theory.bayes.isotropic_risk(DIM, int(k), NOISE) for k in fine],
}
crossover = theory.bayes.longest_winning_context(DIM, NOISE)
with report.house_style():
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axes.plot(fine, [theory.mahankali2023.minimum_risk(DIM, int(k), NOISE) for k in fine])
    axes.plot(lengths, trained, "o", color="C0", label="trained layer")
    for colour, (name, label) in enumerate({"OLS": "least squares", "ridge": "ridge, penalty $s^2$ (Bayes)"}.items(), 1):
        means = [risks[name].mean for risks in simulated]
        errors = [2 * risks[name].standard_error for risks in simulated]
        axes.plot(fine, exact[name], color=f"C{colour}")
        axes.errorbar(lengths, means, errors, fmt="o", capsize=3, color=f"C{colour}", label=label)
    axes.axvline(crossover, color="0.5", linestyle=":", label=f"predicted crossover, n = {crossover:.2f}")
    axes.set(xscale="log", yscale="log", xlabel="context length n", ylabel="excess risk")
    ticks = (7, 10, 16, 30, 60)
    axes.set_xticks(ticks, labels=[str(k) for k in ticks])
    axes.minorticks_off()
    axes.legend()
    plt.show()

# %% [markdown]
# Lines are closed forms. The layer's points are exact risks of trained weights; the others are means over 50 000 prompts with
# intervals of two standard errors. The first two curves cross where they should, and the gap to Bayes stays open.
# `python experiments/mahankali2023.py` draws it with more lengths and more prompts.

# %% [markdown]
# ## Theorem 3: nonlinear responses
#
# > Let $y_i = f(x_i) + \varepsilon_i$ with isotropic inputs, where the random function $f$ has a distribution that is
# invariant under > rotations of $x$ and under $f \to -f$. The best layer is *still* one step of gradient descent for
# **linear** regression, > $\hat y = \eta\, b^\top x_q$, with
# > $$ \eta = \frac{E[u^\top b]}{E[b^\top b]} = \frac{E|m_f|^2}{E[f^2 |x|^2] + s^2 d + (n-1)\, E|m_f|^2} ,
# > \qquad m_f = E_x[x f(x)], $$
# > where $u$ is the best linear predictor given the prompt.
#
# The answer of the layer is linear in $x_q$ whatever it does, so only the linear part $m_f$ of $f$ can be predicted, and the
# same two symmetries as before leave one number to choose. Everything in $f$ that is not linear acts as noise and shortens
# the step. A random ReLU network of $K$ units gives $\eta = 1/(n + 2d + 3 + 4 s^2/K)$; even functions give $\eta = 0$.
#
# The claim takes six families at $d = 3$, $n = 6$, $s^2 = \frac14$ and, for each, 40 000 prompts (half of its default). It
# estimates the ratio that defines $\eta$ and the risk of that step, and it fits least squares on *all* products of two token
# entries and a query entry. That is the best which any number of linear heads could do, and it must have no coefficients but
# those of the step.

# %%
entries = verify.run(["mahankali2023.thm3"], {"samples": 40_000})
display(report.check_table(entries))
assert verify.all_passed(entries)

# %% [markdown]
# And a trained layer, for the ReLU networks: gradient flow on the exact moments of samples of 20 000 prompts, five samples.

# %%
dim, length, noise, samples = 3, 6, 0.25, 5
families = {
    "linear": ("w·x", tasks.Linear()),
    "relu": ("ReLU net, K = 4", tasks.ReLUNetwork(4)),
    "sign": ("sign(u·x)", tasks.SingleIndex(tasks.Sign())),
    "cubic": ("(u·x)³", tasks.SingleIndex(tasks.Monomial(3))),
    "cosine": ("cos(w·x + φ)", tasks.RandomCosine()),
    "square": ("±(u·x)²", tasks.SingleIndex(tasks.Monomial(2), random_sign=True)),
}


def learned_step(task, key):
    """The step size of the layer that gradient flow finds on the moments of one sample."""
    objective = objectives.SampledLoss.build(task, AVERAGING, key, prompts=20_000)
    limit = training.gradient_flow(objective, initializers.zhang(task.dim, 0.1), weight_tolerance=1e-6).limit
    return np.trace(analysis.effective_preconditioner(limit, AVERAGING)) / task.dim / task.context_length


closed = {name: theory.nonlinear.step_size(family.moments(dim), dim, length, noise) for name, (_, family) in families.items()}
sampled = [check for check in entries[0]["checks"] if check["name"].startswith("eta_") and check["standard_error"]]
found = {check["name"].split("_")[1]: check for check in sampled}
task = tasks.NonlinearRegression(dim=dim, context_length=length, response=families["relu"][1], noise_std=np.sqrt(noise))
steps = [learned_step(task, key) for key in jax.random.split(jax.random.key(0), samples)]
trained, error = np.mean(steps), np.std(steps, ddof=1) / np.sqrt(samples)
print(f"ReLU networks: step of the trained layer {trained:.4f} ± {error:.4f}, closed form {closed['relu']:.4f}")

# %%
with report.house_style():
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    places = np.arange(len(families))
    axes.bar(places, list(closed.values()), width=0.6, color="0.85", label="closed form")
    means, errors = np.array([(found[name]["measured"], found[name]["standard_error"]) for name in families]).T
    axes.errorbar(places, means, 2 * errors, fmt="o", capsize=3, label="ratio of sampled means")
    axes.errorbar([list(families).index("relu") + 0.15], [trained], [2 * error], fmt="s", capsize=3, label="trained layer")
    axes.set_xticks(places, labels=[label for label, _ in families.values()])
    axes.set_ylabel(r"step size $\eta$ of the sum")
    axes.legend()
    plt.show()

# %% [markdown]
# Bars: the closed form. Points have intervals of two standard errors. The smaller the linear part of the response beside the
# rest, the shorter the step, down to zero for the even family. `python experiments/mahankali2023.py` trains a layer on each
# of the six.

# %% [markdown]
# ## Further claims
#
# `mahankali2023.setting` compares the layer with its formula term by term, `mahankali2023.lem1` and `mahankali2023.moments`
# simulate the other steps of the proof, `mahankali2023.bayes-gap` the limit $(d+1+s^2)/s^2$, and `mahankali2023.gauge` says
# in which sense the minimiser is unique: up to the scale that $W_{PV}$ and $W_{KQ}$ trade, entries that nothing reads, and,
# at $d = 1$ or for tasks on a line, a second branch in which $k_2 p_1^\top$ does the work of $p_2 K_1^\top$.
#
# ```bash
# icl-lab verify 'mahankali2023.*'                                # all of them, at their default sizes
# icl-lab verify mahankali2023.thm1 --set d=5 --set N=12          # at sizes of your own
# python experiments/mahankali2023.py                             # the figures with more points
# ```
