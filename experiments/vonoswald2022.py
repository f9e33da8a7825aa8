"""Figures of von Oswald et al. 2022 (arXiv 2212.07677): trained linear attention beside gradient descent and its exact losses.

python experiments/vonoswald2022.py                                       two minutes on two cores
python experiments/vonoswald2022.py --config-name vonoswald2022_published    the settings of the published code, hours

Losses are half mean squared errors, as in the paper; L* is the exact loss of the best single step of gradient descent.
"""

from __future__ import annotations

from pathlib import Path

import common
import equinox as eqx
import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.progress import track

from icl_lab import analysis, estimators, models, objectives, tasks, theory, training
from icl_lab.core import prng
from icl_lab.core.typing import Weights
from icl_lab.models import constructions, initializers
from icl_lab.report.style import save
from icl_lab.theory.descent.descent_steps import Rule

MODEL = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none")
LOOPED = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, normaliser="none", loops=2)
KURTOSIS = 9 / 5
"""E x^4 / (E x^2)^2 of a uniform x."""


def task_of(config: DictConfig) -> tasks.LinearRegression:
    """Uniform inputs."""
    distribution = tasks.Uniform(config.dim, half_width=config.half_width)
    return tasks.LinearRegression(dim=config.dim, context_length=config.context_length, covariates=distribution)


def setting(config: DictConfig, scale: float = 1.0) -> tuple[int, int, float, float]:
    """What the closed forms of one step take: d, N, variance and kurtosis of the inputs, scaled if wanted."""
    return config.dim, config.context_length, (scale * config.half_width) ** 2 / 3, KURTOSIS


def best_step(config: DictConfig) -> tuple[float, float]:
    """The best step size eta and its half loss L*."""
    eta = theory.vonoswald2022.optimal_step_size(*setting(config))
    return eta, theory.vonoswald2022.one_step_loss(eta, *setting(config))


def optimiser(settings: DictConfig) -> optax.GradientTransformation:
    """Adam behind a clip of the gradient's norm."""
    rate = settings.learning_rate
    schedule = optax.cosine_decay_schedule(rate, settings.steps) if settings.decay else rate
    return optax.chain(optax.clip_by_global_norm(settings.clip), optax.adam(schedule, b2=settings.b2))


def starts(config: DictConfig, settings: DictConfig, count: int, name: str) -> Weights:
    """Gaussian starts of one layer in float32, with a leading axis."""
    draw = initializers.separate_gaussian if settings.separate else initializers.gaussian
    key = prng.stream(jax.random.key(config.seed), name)
    return jax.tree.map(np.float32, draw(key, config.dim + 1, settings.init_std, count))


def one_layer(config: DictConfig, folder: Path) -> Weights:
    """Figures 2 and 9: exact loss and alignment with the best step along training; the weights of the best seed."""
    settings, task, key = config.one_layer, task_of(config), jax.random.key(config.seed)
    eta, least = best_step(config)
    exact = objectives.independent_loss(task, MODEL)
    fresh = objectives.StreamedLoss.build(task, MODEL, key, settings.batch, settings.batch)
    begin = starts(config, settings, config.seeds, "one layer")
    step = eqx.Partial(estimators.gradient_descent, step_size=eta)
    adam = optimiser(settings)  # one object, so that all starts share one compilation
    figure = Figure(figsize=(11.5, 3.7), layout="constrained")
    (left, middle, right), numbers, best = figure.subplots(1, 3), {}, None
    for seed in track(range(config.seeds), "one layer"):
        start = jax.tree.map(lambda w, i=seed: w[i], begin)
        run = training.descend(fresh, start, adam, settings.steps, key=prng.stream(key, f"prompts {seed}"))
        path = run.trajectory
        shown = np.unique(np.linspace(0, len(path.times) - 1, settings.points).astype(int))
        weights = [jax.tree.map(np.float64, path.at(int(i)).merged()) for i in shown]
        losses = np.array([exact.risk(one) / 2 for one in weights])
        found = [
            analysis.compare_functions(task, eqx.Partial(MODEL, one), step, prng.stream(key, "measure"), 1000, 1000)
            for one in weights
        ]
        times = path.times[shown]
        measures = {
            "cosine": [float(one.cosine.mean) for one in found],
            "model difference": [float(one.sensitivity_distance.mean) for one in found],
            "prediction difference": [float(one.mean_prediction_distance.mean) for one in found],
        }
        left.plot(times, losses, color=f"C{seed}", label=f"start {seed}")
        middle.plot(times, measures["cosine"], color=f"C{seed}")
        right.plot(times, measures["model difference"], color=f"C{seed}", label="sensitivity" if seed == 0 else None)
        right.plot(times, measures["prediction difference"], "--", color=f"C{seed}", label="prediction" if seed == 0 else None)
        numbers |= {f"step {seed}": times, f"loss {seed}": losses}
        numbers |= {f"{name} {seed}": values for name, values in measures.items()}
        print(f"one layer, start {seed}: loss {losses[-1]:.6f}, L* {least:.6f}, cosine {measures['cosine'][-1]:.5f}")
        if best is None or losses[-1] < best[0]:
            best = losses[-1], weights[-1]
    left.axhline(least, color="black", linestyle="--", label="L*, one step of GD")
    dim, length, variance, _ = setting(config)
    wrong = variance / 2 * (dim - theory.vonoswald2022.mean_square_step(dim, length, KURTOSIS) / dim)
    left.axhline(wrong, color="0.5", linestyle=":", label="plateau of rank one")
    left.set(xlabel="step of Adam", ylabel="exact half loss")
    left.legend(fontsize="x-small")
    middle.axhline(1.0, color="black", linestyle="--")
    middle.set(xlabel="step of Adam", ylabel="cosine of sensitivities")
    right.set(xlabel="step of Adam", ylabel="mean distance to the GD step", yscale="log")
    right.legend(fontsize="x-small")
    save(
        figure,
        folder / "one_layer.png",
        "One linear layer on fresh prompts finds one step of gradient descent with the best step size. The loss is the exact "
        "one of the weights, not that of a batch. A start may first learn a wrong direction and stay on its plateau.",
        numbers | {"best step": [least]},
    )
    assert best is not None
    return best[1]


def two_layers(config: DictConfig, folder: Path) -> None:
    """Figure 3a: two looped and two free layers during training beside the best two steps of GD and GD++."""
    settings, key = config.two_layers, jax.random.key(config.seed)
    config = DictConfig({**config, "dim": settings.dim, "context_length": settings.context_length})
    task = task_of(config)
    rule = Rule.exact("uniform", config.dim, config.context_length, config.half_width, 8)
    plain = theory.descent_steps.best_shared_step(rule, 2).loss
    steps = theory.descent_steps.best_steps("uniform", config.dim, config.context_length, config.half_width, 2).loss
    figure = Figure(figsize=(9.6, 4.1), layout="constrained")
    numbers = {}
    for axes, tied in zip(figure.subplots(1, 2, sharey=True), (True, False), strict=True):
        name, model = ("looped", LOOPED) if tied else ("two layers", MODEL)
        optimum = theory.descent_steps.best_corrected(rule, 2, tied, 16)
        corrected = optimum.loss
        begin = tuple(starts(config, settings, settings.starts, f"layer {i}") for i in range(1 if tied else 2))
        fresh = objectives.StreamedLoss.build(task, model, key, settings.batch, settings.batch)
        runs = training.descents(fresh, begin, optimiser(settings), settings.steps, key=prng.stream(key, name), progress=True)
        test = objectives.StreamedLoss.build(
            task, model, prng.stream(key, "test"), 25 * config.test_prompts, config.test_prompts
        )
        ends = [jax.tree.map(np.float64, runs.limit(i)) for i in range(settings.starts)]
        losses = np.array([test.risk(one) / 2 for one in ends])
        best = int(np.argmin(losses))
        # The best GD++ on the same prompts, whose luck it shares.
        built = constructions.gd_plus_plus(MODEL, task.dim, task.context_length, optimum.step_sizes, optimum.curvatures)
        constructed = objectives.StreamedLoss(task, MODEL, test.seed_key, test.batch, test.chunk).risk(built) / 2
        error = test.standard_error(ends[best]) / 2
        window = max(1, settings.steps // 60)
        smooth = runs.batch_losses[:, : settings.steps // window * window].reshape(settings.starts, -1, window).mean(axis=2)
        middles = window * (np.arange(smooth.shape[1]) + 0.5)
        for i, line in enumerate(smooth):
            axes.plot(middles, line, color="C0", alpha=1.0 if i == best else 0.3, label="trained" if i == best else None)
        axes.errorbar(
            [settings.steps], [losses[best]], [2 * error], fmt="o", capsize=3, color="C0", label="best start, fresh prompts"
        )
        axes.axhline(plain, color="C1", linestyle="--", label=f"GD, one step size: {plain:.4f}")
        if not tied:
            axes.axhline(steps, color="C1", linestyle=":", label=f"GD, two step sizes: {steps:.4f}")
        axes.axhline(corrected, color="black", linestyle="--", label=f"GD++: {corrected:.4f}")
        axes.set(title=name, xlabel="step of Adam", ylim=(0.8 * corrected, 2.5 * plain))
        axes.legend(fontsize="x-small")
        numbers |= {f"step {name}": middles} | {f"loss {name} {i}": line for i, line in enumerate(smooth)}
        numbers |= {f"ends {name}": losses, f"error {name}": [error], f"GD++ {name}": [corrected], f"GD {name}": [plain, steps]}
        print(
            f"{name}: loss {losses[best]:.5f} +- {error:.5f}, best GD++ {constructed:.5f} on the same prompts, {corrected:.5f} "
            f"exact; best GD {plain:.5f}; all {losses}"
        )
    figure.axes[0].set_ylabel("half loss")
    save(
        figure,
        folder / "two_layers.png",
        "Two trained layers beat every two steps of plain gradient descent and come to the best gradient descent with "
        "curvature correction. Lines: exact optima, nothing sampled. Faint: other starts, some in local minima.",
        numbers,
    )


def scaled(config: DictConfig, weights: Weights, folder: Path) -> None:
    """Figure 6: the trained layer, the GD step and least squares under scaled inputs and scaled tasks."""
    eta, least = best_step(config)
    # A penalty, since least squares proper has no mean loss at d = N.
    predictors = {
        "trained layer": eqx.Partial(MODEL, weights),
        "one step of GD": eqx.Partial(estimators.gradient_descent, step_size=eta),
        f"ridge, penalty {config.ridge:g}": eqx.Partial(estimators.ridge, penalty=config.ridge),
    }
    task = jax.tree.map(jnp.asarray, task_of(config))
    keys = jax.random.split(prng.stream(jax.random.key(config.seed), "scaled"), config.test_prompts)
    inputs, targets = np.array(config.input_scales, dtype=float), np.array(config.task_scales, dtype=float)
    input_scales = jnp.asarray(np.append(inputs, np.ones_like(targets)))
    task_scales = jnp.asarray(np.append(np.ones_like(inputs), targets))
    drawn = {name: np.asarray(_half_losses(one, task, input_scales, task_scales, keys)) for name, one in predictors.items()}
    figure, numbers = Figure(figsize=(9.6, 3.9), layout="constrained"), {}
    for axes, kind, part in zip(
        figure.subplots(1, 2), ("input", "task"), (slice(len(inputs)), slice(len(inputs), None)), strict=True
    ):
        alphas = inputs if kind == "input" else targets
        fine = np.linspace(alphas.min(), alphas.max(), 100)
        if kind == "input":
            exact = [theory.vonoswald2022.one_step_loss(eta, *setting(config, alpha)) for alpha in fine]
        else:
            exact = fine**2 * least
        axes.plot(fine, exact, color="black", label="exact, one step of GD")
        for colour, (name, values) in enumerate(drawn.items()):
            means = values[part].mean(axis=1)
            errors = values[part].std(axis=1, ddof=1) / np.sqrt(config.test_prompts)
            axes.errorbar(alphas, means, 2 * errors, fmt="ox^"[colour], capsize=2, color=f"C{colour}", label=name)
            numbers |= {f"{kind} {name}": means, f"{kind} {name} error": errors}
        numbers |= {f"{kind} scale": alphas, f"{kind} fine": fine, f"{kind} exact": exact}
        axes.set(xlabel=f"scale of the {kind}s", yscale="log")
    figure.axes[0].set_ylabel("half loss on fresh prompts")
    figure.axes[0].legend(fontsize="x-small")
    save(
        figure,
        folder / "scaled.png",
        "Outside of the training distribution the trained layer stays with its step of gradient descent, also where that step "
        "is far "
        "too long. Scaled tasks scale the loss of everything that is linear in the labels, ridge included.",
        numbers,
    )


@eqx.filter_jit
def _half_losses(predictor, task: tasks.LinearRegression, input_scales, task_scales, keys):
    """Half losses on rescaled prompts, (scales, prompts)."""

    def at(scales):
        distribution = tasks.Rescaled(task, *scales)

        def one(key):
            prompt = distribution.sample(key)
            return jnp.sum((predictor(prompt) - prompt.target) ** 2) / 2

        return jax.vmap(one)(keys)

    return jax.lax.map(at, (input_scales, task_scales))


@eqx.filter_jit
def _rollout_losses(weights: Weights, task: tasks.LinearRegression, damping, keys, times: int):
    """Half losses averaged over the query after 1 .. times applications of one layer, (tasks, times)."""

    def one(key):
        prompt = task.sample(key)
        tokens = jnp.concatenate([prompt.inputs, prompt.labels], axis=1)
        queries = jnp.concatenate([jnp.eye(task.dim), jnp.zeros((task.dim, 1))], axis=1)

        def apply(state, _):
            context, asked = state
            gram = context.T @ context

            def moved(rows):
                # Only the label slot is kept, damped.
                return rows.at[:, -1].add(damping * (rows @ weights.w_kq.T @ gram.T @ weights.w_pv.T)[:, -1])

            state = moved(context), moved(asked)
            missed = prompt.latent + state[1][:, -1]
            return state, jnp.sum(missed**2) / 2

        return jax.lax.scan(apply, (tokens, queries), length=times)[1]

    return task.covariance[0, 0] * jax.vmap(one)(keys)


def sampled_rule(config: DictConfig, length: int, contexts: int) -> Rule:
    """The eigenvalues of X^T X in sampled contexts of uniform inputs."""
    unit = np.random.default_rng(config.seed).uniform(-1.0, 1.0, (contexts, length, config.dim))
    return Rule.of_contexts(config.half_width * unit, config.half_width**2 / 3)


def repeated(config: DictConfig, weights: Weights, folder: Path) -> None:
    """Figures 1 and 10: the trained layer repeated, damped by lambda; medians beside those of (1 - lambda eta s/N)^T."""
    sizes, (eta, _) = config.rollout, best_step(config)
    task = jax.tree.map(jnp.asarray, task_of(config))
    keys = jax.random.split(prng.stream(jax.random.key(config.seed), "rollout"), sizes.tasks)
    rule = sampled_rule(config, config.context_length, sizes.tasks)
    nodes = rule.nodes.reshape(sizes.tasks, config.dim)
    vectors = np.random.default_rng(config.seed).standard_normal(nodes.shape)
    times = np.arange(1, sizes.times + 1)
    figure = Figure(figsize=(6.8, 4.3), layout="constrained")
    axes, numbers = figure.subplots(), {"T": times}
    for colour, damping in enumerate(sizes.dampings):
        measured = np.median(np.asarray(_rollout_losses(weights, task, jnp.asarray(damping), keys, sizes.times)), axis=0)
        shrinkage = 1 - damping * eta * nodes / config.context_length
        with np.errstate(over="ignore"):
            exact = [np.median(rule.variance / 2 * np.sum((shrinkage**t * vectors) ** 2, axis=1)) for t in times]
        share = np.mean(damping * eta * nodes.max(axis=1) / config.context_length > 2)
        axes.plot(times, exact, color=f"C{colour}", label=f"λ = {damping:g}; {100 * share:.2f} % of tasks diverge")
        axes.plot(times, measured, ".", color=f"C{colour}")
        numbers |= {f"median {damping:g}": measured, f"predicted {damping:g}": exact, f"diverging {damping:g}": [share]}
    axes.set(xlabel="times T that the layer is applied", ylabel="median half loss", xscale="log", yscale="log")
    axes.legend(fontsize="x-small")
    save(
        figure,
        folder / "repeated.png",
        "Points: one trained layer applied T times; lines: T steps of gradient descent on other sampled contexts. Medians, "
        "since some tasks diverge and no mean exists at large T for all practical purposes.",
        numbers,
    )


def spectra(config: DictConfig, folder: Path) -> None:
    """Figure 13: eigenvalues of X^T X before and after the curvature correction of the best looped GD++."""
    lengths = list(config.spectra.lengths)
    figure = Figure(figsize=(2.9 * len(lengths), 3.4), layout="constrained")
    numbers = {}
    for axes, length in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        exact = Rule.exact("uniform", config.dim, length, config.half_width, 8)
        gamma = float(theory.descent_steps.best_corrected(exact, 2, True, 16).curvatures[0])
        nodes = sampled_rule(config, length, config.spectra.tasks).nodes
        after = theory.descent_variants.gdpp_eigenvalue(nodes, gamma)
        bins = np.linspace(0, np.quantile(nodes, 0.999), 60)
        for values, label in ((nodes, "before"), (after, "after")):
            axes.hist(values, bins=bins, density=True, alpha=0.55, label=label)
            pairs = values.reshape(-1, config.dim)
            numbers |= {
                f"N={length} {label} density": np.histogram(values, bins=bins, density=True)[0],
                f"N={length} {label} median condition": [np.median(pairs.max(axis=1) / pairs.min(axis=1))],
            }
        numbers |= {f"N={length} bins": bins, f"N={length} gamma": [gamma]}
        axes.axvline(4 / (27 * gamma), color="0.4", linestyle=":", label="4/(27γ)")
        axes.set(title=f"N = {length}, γ = {gamma:.4f}", xlabel="eigenvalue")
        axes.set_yticks([])
    figure.axes[0].set_ylabel("density")
    figure.axes[0].legend(fontsize="x-small")
    save(
        figure,
        folder / "spectra.png",
        "The correction s → s (1 - γ s)², at the γ of the best two looped layers, draws large eigenvalues together, so that "
        "one step size suits more of the spectrum. The dotted line is its local maximum.",
        numbers,
    )


def fixed_tasks(config: DictConfig, folder: Path) -> None:
    """Figure 16: one layer trained on a fixed set of B prompts, its loss there and on the distribution."""
    settings, task = config.fixed_tasks, task_of(config)
    exact = objectives.independent_loss(task, MODEL)
    _, least = best_step(config)
    adam = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.steps))
    begin = starts(config, config.one_layer, 1, "fixed tasks")
    rows = []
    for size in track(settings.sizes, "fixed tasks"):
        key = prng.stream(jax.random.key(config.seed), f"fixed {size}")
        sampled = objectives.SampledLoss.build(task, MODEL, key, size)
        found = training.descents(sampled, jax.tree.map(np.float64, begin), adam, settings.steps)
        rows.append((sampled.risk(found.limit(0)) / 2, exact.risk(found.limit(0).merged()) / 2))
    train, test = np.array(rows).T
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(settings.sizes, train, "o-", label="on the B prompts")
    axes.plot(settings.sizes, test, "s-", label="exact, on their distribution")
    axes.axhline(least, color="black", linestyle="--", label="L*, one step of GD")
    axes.set(xlabel="prompts B of the training set", ylabel="half loss", xscale="log", yscale="log")
    axes.set_xticks(settings.sizes, labels=[str(size) for size in settings.sizes])
    axes.minorticks_off()
    axes.legend(fontsize="x-small")
    save(
        figure,
        folder / "fixed_tasks.png",
        "A layer of this size fits a few hundred prompts at the cost of all others; gradient descent is what thousands of "
        "different prompts teach.",
        {"B": list(settings.sizes), "train": train, "test": test, "best step": [least]},
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="vonoswald2022")
def main(config: DictConfig) -> None:
    """Draw every figure, with its numbers beside it."""
    with common.configured_figures(config) as folder:
        spectra(config, folder)
        weights = one_layer(config, folder)
        scaled(config, weights, folder)
        repeated(config, weights, folder)
        fixed_tasks(config, folder)
        two_layers(config, folder)


if __name__ == "__main__":
    main()
