"""Claims of Zhang, Frei, Bartlett 2023 about the prediction as a function of the weights, and the loss it makes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from icl_lab import models, theory, training
from icl_lab.claims import check, convergence
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Source, integer
from icl_lab.claims.registry import claim
from icl_lab.claims.settings.flow_paths import structured
from icl_lab.claims.settings.regression import check_spectrum, covariance
from icl_lab.claims.zhang2023.flow import INPUTS, SIZES, START, objective_of, random_structured
from icl_lab.claims.zhang2023.limit import PAPER, theta_matrix, validate_start
from icl_lab.core import compiled, prng
from icl_lab.models import initializers
from icl_lab.models.weights import LSAWeights
from icl_lab.tasks.regression.linear import LinearRegression

# Sums of a few hundred float64 products.
EXACT_TOLERANCE = 1e-12
# The flow is stopped at an estimated weight error of a tenth of this.
LIMIT_TOLERANCE = 1e-8


@claim(
    "zhang2023.setup",
    statement="The prediction is (p1, p2).(E E^T / N) [K1; k2^T] x_q, and no other entry of W_PV and W_KQ matters.",
    source=Source(PAPER, "equation (3.5) and the remark on the entries that drop out"),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(6, 1, "context length"),
        "seed": integer(0, 0, "of weights and prompt"),
    },
)
def prediction_is_bilinear(d, N, seed) -> list[Check]:
    key = jax.random.key(seed)
    model = models.LinearSelfAttention()
    prompt = LinearRegression(dim=d, context_length=N).sample(prng.stream(key, "prompt"))
    weights = initializers.gaussian(prng.stream(key, "weights"), d + 1, 1.0)
    other = initializers.gaussian(prng.stream(key, "other weights"), d + 1, 1.0)
    # The same last row of W_PV and first columns of W_KQ, everything else new.
    twin = LSAWeights(
        w_pv=np.concatenate([other.w_pv[:-1], weights.w_pv[-1:]]),
        w_kq=np.concatenate([weights.w_kq[:, :-1], other.w_kq[:, -1:]], axis=1),
    )

    @compiled.jit
    def answers(one):
        tokens = model.apply(one, model.tokens(prompt))
        return tokens[-1, -1], model(one, prompt)[0], jax.grad(lambda w: model(w, prompt)[0])(one)

    (all_tokens, answer, gradient), (of_twin, _, _) = answers(weights), answers(twin)
    expected = theory.structured.prediction(
        weights.w_pv, weights.w_kq, *map(np.asarray, (prompt.inputs, prompt.labels[:, 0], prompt.query))
    )
    return [
        check.exact("prediction", answer, expected, EXACT_TOLERANCE),
        check.exact("last_entry_of_all_tokens", all_tokens, expected, EXACT_TOLERANCE),
        check.exact("with_other_unreached_entries", of_twin, expected, EXACT_TOLERANCE),
        check.exact("gradient_of_unreached_w_pv_abs", gradient.w_pv[:d], np.zeros((d, d + 1)), 0.0),
        check.exact("gradient_of_unreached_w_kq_abs", gradient.w_kq[:, d], np.zeros(d + 1), 0.0),
    ]


@claim(
    "zhang2023.lem5.1",
    statement="The prediction is a quadratic form of the weights whose matrix is indefinite, with min(d, N) + 1 negative "
    "eigenvalues.",
    source=Source(PAPER, "Lemma 5.1"),
    parameters={
        "d": integer(3, 1, "input dimension"),
        "N": integer(6, 1, "context length"),
        "seed": integer(0, 0, "of weights and prompt"),
    },
)
def prediction_is_a_quadratic_form(d, N, seed) -> list[Check]:
    key = jax.random.key(seed)
    model = models.LinearSelfAttention()
    prompt = LinearRegression(dim=d, context_length=N).sample(prng.stream(key, "prompt"))
    # vec(U) stacks the columns of U = [[K1, p1], [k2^T, p2]].
    vec = np.asarray(jax.random.normal(prng.stream(key, "weights"), ((d + 1) ** 2,)))

    def predict(vec):
        active = vec.reshape(d + 1, d + 1).T
        empty = jnp.zeros((d + 1, d + 1))
        weights = LSAWeights(w_pv=empty.at[-1].set(active[:, -1]), w_kq=empty.at[:, :d].set(active[:, :d]))
        return model(weights, prompt)[0]

    answer, second = compiled.jit(lambda v: (predict(v), jax.hessian(predict)(v)))(vec)
    data = tuple(map(np.asarray, (prompt.inputs, prompt.labels[:, 0], prompt.query)))
    form = theory.structured.quadratic_form(*data)
    values = np.linalg.eigvalsh(np.asarray(second) / 2)
    negative = int(np.sum(values < -EXACT_TOLERANCE * values[-1]))
    return [
        check.exact("prediction", answer, vec @ form @ vec, EXACT_TOLERANCE),
        check.exact("hessian_distance_abs", np.linalg.norm(second / 2 - form) / np.linalg.norm(form), 0.0, EXACT_TOLERANCE),
        check.exact("eigenvalues", values, theory.structured.quadratic_form_eigenvalues(*data), EXACT_TOLERANCE),
        check.exact("negative_eigenvalues", negative, theory.structured.negative_directions(d, N), 0.0),
    ]


@claim(
    "zhang2023.lemA.1",
    statement="On structured weights the half loss is tr(u^2/2 Gamma Lam U Lam U^T - u Lam^2 U^T) + tr(Lam)/2.",
    source=Source(PAPER, "Lemma A.1"),
    parameters=START | {"points": integer(4, 1, "random weights")},
    validate=lambda points, **start: validate_start(**start),
)
def equivalent_objective(d, N, Lam, rotate, sigma, theta, seed, points) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    root = theta_matrix(theta, d, seed)
    objective = objective_of(matrix, N)
    drawn = random_structured(jax.random.key(seed), d, points)
    measured = [objective.risk(structured(u, inner)) / 2 for u, inner in drawn]
    expected = [theory.structured.reduced_loss(u, inner, matrix, N) + np.trace(matrix) / 2 for u, inner in drawn]
    start = theory.structured.reduced_loss(sigma, sigma * root @ root.T, matrix, N) + np.trace(matrix) / 2
    return [
        check.exact("half_loss", measured, expected, EXACT_TOLERANCE),
        check.exact("half_loss_at_start", objective.risk(initializers.zhang(d, sigma, root)) / 2, start, EXACT_TOLERANCE),
        check.exact(
            "half_loss_at_zero", objective.risk(structured(0.0, np.zeros((d, d)))) / 2, np.trace(matrix) / 2, EXACT_TOLERANCE
        ),
    ]


@claim(
    "zhang2023.corA.2",
    statement="The reduced loss has the minimum -tr(Lam^2 Gamma^{-1})/2, and lies above it by "
    "||Gamma^{1/2} (u Lam^{1/2} U Lam^{1/2} - Lam Gamma^{-1})||^2 / 2.",
    source=Source(PAPER, "Corollary A.2"),
    parameters=START | {"points": integer(4, 1, "random weights")},
    validate=lambda points, **start: validate_start(**start),
)
def loss_gap(d, N, Lam, rotate, sigma, theta, seed, points) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    root = theta_matrix(theta, d, seed)
    objective = objective_of(matrix, N)
    start = initializers.zhang(d, sigma, root)
    flow = convergence.to_limit(objective, start, weight_tolerance=LIMIT_TOLERANCE)
    minimum = objective.risk(flow.limit) / 2
    drawn = [(sigma, sigma * root @ root.T), *random_structured(jax.random.key(seed), d, points)]
    measured = [objective.risk(structured(u, inner)) / 2 - minimum for u, inner in drawn]
    expected = [theory.structured.loss_gap(u, inner, matrix, N) for u, inner in drawn]
    lowest = theory.structured.minimum_reduced_loss(matrix, N)
    reduced = minimum - objective.risk(structured(0.0, 0 * matrix)) / 2
    return [
        check.holds("flow_converged_abs", flow.verdict == training.Verdict.CONVERGED),
        check.exact("smallest_half_loss", minimum, lowest + np.trace(matrix) / 2, EXACT_TOLERANCE, terms=np.trace(matrix)),
        check.exact("smallest_reduced_loss", reduced, lowest, EXACT_TOLERANCE),
        check.exact("gap", measured, expected, EXACT_TOLERANCE),
    ]


@claim(
    "zhang2023.lem5.3",
    statement="Every minimiser of the reduced loss has u U = Gamma^{-1}: a curve (c U, u / c).",
    source=Source(PAPER, "Lemma 5.3"),
    parameters=SIZES | INPUTS | {"starts": integer(4, 1, "random starts"), "seed": integer(0, 0, "of the basis and starts")},
    validate=lambda d, Lam, **_: check_spectrum(Lam, d, "Lam"),
)
def minimisers(d, N, Lam, rotate, starts, seed) -> list[Check]:
    matrix = covariance(Lam, d, rotate, seed)
    objective = objective_of(matrix, N)
    inverse = np.linalg.inv(theory.zhang2023.gamma(matrix, N))
    lowest = theory.structured.minimum_reduced_loss(matrix, N) + np.trace(matrix) / 2
    checks = []
    for i, (u, inner) in enumerate(random_structured(jax.random.key(seed), d, starts)):
        flow = convergence.to_limit(objective, structured(u, inner), weight_tolerance=0.1 * LIMIT_TOLERANCE)
        u, inner = float(flow.limit.w_pv[-1, -1]), flow.limit.w_kq[:d, :d]
        curve = [objective.risk(structured(u / c, c * inner)) / 2 for c in (-2.0, 0.5, 3.0)]
        checks += [
            check.holds(f"flow_converged_{i}_abs", flow.verdict == training.Verdict.CONVERGED),
            check.exact(f"product_{i}", u * inner, inverse, LIMIT_TOLERANCE),
            check.exact(f"half_loss_along_the_curve_{i}", curve, np.full(3, lowest), EXACT_TOLERANCE, terms=np.trace(matrix)),
        ]
    return checks
