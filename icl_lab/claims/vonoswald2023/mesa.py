"""Claims of von Oswald et al. 2023 (arXiv 2309.05858) about sequences: one step, the mesa layer, several layers."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import estimators, models, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source
from icl_lab.claims.registry import claim
from icl_lab.claims.setting import integer, number, restricted
from icl_lab.claims.settings.dynamics import NoisyDynamicsSetting
from icl_lab.claims.settings.seeded import Seeded
from icl_lab.core import compiled, prng
from icl_lab.models import LSAWeights, PairedWeights, constructions
from icl_lab.tasks.prompt import Prompt

PAPER = "von Oswald et al. 2023, arXiv 2309.05858"
# The same few hundred products in two orders.
ROUNDING = 1e-12
# The products of Chebyshev steps pass through large numbers.
REFINEMENT_TOLERANCE = 1e-10


class SequenceSetting(Seeded, NoisyDynamicsSetting):
    """One noisy sequence with a Haar-orthogonal transition."""

    def states(self) -> np.ndarray:
        """x_1 .. x_{T+1}."""
        prompt = self.task_at(self.T).sample(self.key)
        return np.concatenate([prompt.inputs, prompt.query[None], prompt.target[None]])


def _prompt_at(states: np.ndarray, t: int) -> Prompt:
    """What position t sees: t - 1 pairs and x_t."""
    return Prompt(states[: t - 1], states[1:t], states[t - 1], states[t])


class OneLayer(SequenceSetting):
    """The weights of one layer."""

    a: float = number(0.4, meaning="multiple of the identity in the key-query block")
    b: float = number(0.9, meaning="multiple of the identity in the value block")


@claim("vonoswald2023.gd1", OneLayer, Source(PAPER, "the construction of one gradient step, for sequences"))
def one_layer_is_one_step(setting: OneLayer) -> list[Check]:
    """One causal linear attention layer on tokens (x_t, x_{t-1}) with value block bI and key-query block aI is, at every
    position at once, one gradient step from W = 0 on the squared errors of the transitions seen so far.

    The layer has these weights, without training, and is run once on a random sequence; the step is written out for every
    position. A step that also sees later transitions, or one on the mean in place of the sum, would make it fail.
    """
    states, d, T, a, b = setting.states(), setting.d, setting.T, setting.a, setting.b
    model = models.LinearSelfAttention(causal=True, embedding="paired")
    weights = PairedWeights(b * np.eye(d), a * np.eye(d))
    longest = _prompt_at(states, T)
    everywhere = np.asarray(model.apply(weights, model.tokens(longest)))[1:, :d]
    zero = np.zeros((d, d))
    steps = np.array(
        [theory.vonoswald2022.gradient_step(zero, states[: t - 1], states[1:t], a * b) @ states[t - 1] for t in range(2, T + 1)]
    )
    return [
        check.exact("all_positions_at_once", everywhere, steps, ROUNDING),
        check.exact("last_position", model(weights, longest), steps[-1], ROUNDING),
        check.exact("gradient_descent", estimators.gradient_descent(longest, a * b), steps[-1], ROUNDING),
    ]


class MesaLayer(SequenceSetting):
    """The mesa layer's penalty."""

    lam: float = number(0.1, positive=True, meaning="penalty", detail=", added to the unnormalised Gram matrix")


@claim("vonoswald2023.mesa-layer", MesaLayer, Source(PAPER, "the mesa layer; Sherman-Morrison formula"))
def mesa_layer(setting: MesaLayer) -> list[Check]:
    """The mesa layer, rank-one updates of the inverse Gram matrix, is in-context ridge regression at every position.

    The recursion is run along a random sequence, without training, and compared with a linear system solved anew at every
    position. A penalty on the normalised Gram matrix, or an update that forgets or lags behind by a state, would make it fail.
    """
    states, T, lam = setting.states(), setting.T, setting.lam
    longest = _prompt_at(states, T)
    path = np.asarray(estimators.recursive_least_squares_path(longest, lam))
    direct = theory.vonoswald2023.ridge_paths(states[:T], lam)
    answers = np.einsum("tij,tj->ti", direct, states[1:T])
    return [
        check.exact("weights_at_all_positions", path, direct, ROUNDING),
        check.exact("answers_at_all_positions", np.einsum("tij,tj->ti", path, states[1:T]), answers, ROUNDING),
        check.exact("recursive_least_squares", estimators.recursive_least_squares(longest, lam), answers[-1], ROUNDING),
        check.exact("ridge", estimators.ridge(longest, lam), answers[-1], ROUNDING),
    ]


class SeveralLayers(Seeded):
    """Random examples for residual layers and for layers that refine the query."""

    d: int = integer(4, 1, "dimension", "of inputs and labels")
    n: int = integer(9, 1, "examples in the context")
    L: int = integer(5, 1, "number of layers", ", residual ones")
    eta: float = number(0.05, positive=True, meaning="step size", detail="of a residual layer, on the summed loss")
    K: int = integer(5, 1, "number of steps", "that refine the query")
    lam: float = number(0.3, positive=True, meaning="penalty", detail=", added to the unnormalised Gram matrix")
    kappa: float = restricted(
        number(10.0, meaning="condition number", detail="of S + lam in the rates"), "a number > 1", lambda value: value > 1
    )


@claim(
    "vonoswald2023.multilayer", SeveralLayers, Source(PAPER, "the layers as matrix powers; Richardson and Chebyshev iteration")
)
def several_layers(setting: SeveralLayers) -> list[Check]:
    """L residual layers that see the whole context are L gradient steps; behind a causal mask they are not, but layers that
    only refine the query converge to the mesa layer at every position, faster with Chebyshev steps.

    Layers with weights built by hand, without training, are run on random examples, and refinements on contexts with the worst
    spectrum for their polynomial. Causal layers that answer like the full ones, a power of the matrix too few, or a rate
    without its square root would make it fail.
    """
    d, n, L, eta, K, lam = setting.d, setting.n, setting.L, setting.eta, setting.K, setting.lam
    key = setting.key
    inputs = np.asarray(jax.random.normal(prng.stream(key, "inputs"), (n + 1, d)))
    labels = np.asarray(jax.random.normal(prng.stream(key, "labels"), (n, d)))
    prompt = Prompt(inputs[:-1], labels, inputs[-1], np.zeros(d))
    full = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0, loops=L)
    # A step on the summed loss is one of n eta on the mean.
    weights = constructions.gradient_descent(full, d, n, n * eta, label_dim=d)
    expected = theory.vonoswald2023.full_context_steps(inputs[:-1], labels, inputs[-1], eta, L)
    answer = np.asarray(full(weights, prompt))
    causal = models.LinearSelfAttention(query_in_sum=False, normaliser="none", causal=True, readout_sign=-1.0, loops=L)
    label, slot = np.diag(np.repeat([0.0, 1.0], d)), np.diag(np.repeat([1.0, 0.0], d))
    tokens = np.asarray(causal.apply(LSAWeights(-eta * label, slot), causal.tokens(prompt)))
    residuals = theory.vonoswald2023.causal_residuals(inputs[:-1], labels, eta, L)
    checks = [
        check.exact("full_context", answer, expected, ROUNDING),
        check.exact("causal_residuals", tokens[:-1, d:], residuals, ROUNDING),
    ]
    if n > 1 and L > 1:
        distance = np.linalg.norm(-tokens[-1, d:] - answer)
        checks.append(check.at_least("causal_answer_is_another", distance, 1e-6 * np.linalg.norm(answer)))
    return [*checks, *_refined_queries(inputs, labels, K, lam), *_rates(K, lam, setting.kappa)]


def _refined_queries(inputs: np.ndarray, labels: np.ndarray, K: int, lam: float) -> list[Check]:
    """Refinement at all positions, with steps for the spectrum of the longest context."""
    count, dim = len(labels), inputs.shape[1]
    largest = lam + float(np.linalg.norm(inputs[:-1], ord=2)) ** 2
    # Position t sees t examples; examples of zeros add nothing.
    seen = np.tril(np.ones((count, count)))[:, :, None]
    prompts = jax.vmap(Prompt)(seen * inputs[None, :-1], seen * labels[None], inputs[1:], np.zeros((count, dim)))
    checks = []
    for name, sizes in (
        ("constant", np.full(K, 2 / (lam + largest))),
        ("chebyshev", estimators.chebyshev_steps(lam, largest, K)),
    ):
        queries = np.asarray(
            compiled.jit(jax.vmap(lambda one, s=sizes: estimators.refined_query(one, s, penalty=lam)))(prompts)
        )
        answers = np.asarray(
            compiled.jit(jax.vmap(lambda one, s=sizes: estimators.query_refinement(one, s, penalty=lam)))(prompts)
        )
        expected = np.array(
            [theory.vonoswald2023.refined_query(inputs[:t].T @ inputs[:t], inputs[t], lam, sizes) for t in range(1, count + 1)]
        )
        readout = np.array([labels[:t].T @ inputs[:t] @ expected[t - 1] for t in range(1, count + 1)])
        checks += [
            check.exact(f"{name}_refined_queries", queries, expected, REFINEMENT_TOLERANCE),
            check.exact(f"{name}_refined_answers", answers, readout, REFINEMENT_TOLERANCE),
        ]
    return checks


def _rates(K: int, lam: float, kappa: float) -> list[Check]:
    """The largest error over contexts whose S + lam has its eigenvalues where the Chebyshev polynomial is extremal."""
    smallest, largest = 2 * lam, 2 * lam * kappa
    values = (smallest + largest) / 2 + (largest - smallest) / 2 * np.cos(np.pi * np.arange(K + 1) / K)
    count = K + 1
    # In these coordinates (S + lam)^{-1} x_q is the vector of ones.
    prompt = Prompt(np.diag(np.sqrt(values - lam)), np.zeros((count, 1)), values, np.zeros(1))
    checks = []
    for name, sizes, factor in (
        ("constant", np.full(K, 2 / (smallest + largest)), theory.vonoswald2023.constant_step_factor(kappa, K)),
        ("chebyshev", estimators.chebyshev_steps(smallest, largest, K), theory.vonoswald2023.chebyshev_factor(kappa, K)),
    ):
        error = np.max(np.abs(1 - np.asarray(estimators.refined_query(prompt, sizes, penalty=lam))))
        checks.append(check.exact(f"{name}_worst_error_abs", error, factor, ROUNDING))
    return checks
