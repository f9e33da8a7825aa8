r"""The exact loss of one linear attention layer on linear regression whose inputs are independent, whatever their law.

Given w the examples z_i = (x_i, y_i) of a prompt are independent of each other and of the query, so with S = sum_i z_i z_i^T

.. math:: E[S_{ab} S_{cd}] = N\, E[z_a z_b z_c z_d] + N (N - 1)\, E_w\!\left[C_{ab} C_{cd}\right], \qquad C = E[z z^\top | w].

If the query is not among the attended tokens, the Gram is S / rho and E[phi phi^T] the Kronecker product of that with the
covariance of the query. Only moments of x up to the fourth enter, and those of the Gaussian w and noise.

If it is, as the token q = (x_q, 0), the Gram is (S + q q^T) / rho and

.. math:: \rho^2 E[\phi_{ab,e} \phi_{cd,f}] = E[S_{ab} S_{cd}] E[q_e q_f] + E[S_{ab}] E[q_c q_d q_e q_f]
          + E[S_{cd}] E[q_a q_b q_e q_f] + E[q_a q_b q_c q_d q_e q_f],

whose last term needs the sixth moments of x. They are products over the coordinates where these are independent.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from icl_lab.core.errors import MemoryBudgetError, UnsupportedProblemError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.moments import Features, MomentLoss, MomentPolynomial, Moments
from icl_lab.objectives.objective import Objective
from icl_lab.objectives.sampled import MEMORY_LIMIT
from icl_lab.tasks.distributions.covariates import CovariateDistribution
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.regression.linear import LinearRegression


class IndependentLoss(MomentLoss):
    """The exact half loss without the query in the sum, by the two factors of E[phi phi^T], a hundred times smaller than it.

    Attributes:
      pairs: (P, P), E[G_ab G_cd] over the pairs of the features.
      queries: (Q, Q), the covariance of the query.
    """

    pairs: Float[Array, "P P"]
    queries: Float[Array, "Q Q"]

    @property
    def bare(self) -> IndependentPolynomial:
        return IndependentPolynomial(self.features, self.moments, self.model.readout_sign, self.pairs, self.queries)


class IndependentPolynomial(MomentPolynomial):
    """The half loss by the two factors of E[phi phi^T].

    Attributes:
      pairs, queries: see `IndependentLoss`.
    """

    pairs: Float[Array, "P P"]
    queries: Float[Array, "Q Q"]

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        theta = self.coefficients(weights).reshape(self.pairs.shape[0], self.queries.shape[0])
        pairs, queries, cross, variance = (
            jnp.asarray(x, theta.dtype) for x in (self.pairs, self.queries, self.moments.cross, self.moments.variance)
        )
        return 0.5 * (variance + jnp.sum(theta * (pairs @ theta @ queries - 2 * cross.reshape(theta.shape))))


def _supports(task: object, model: object) -> bool:
    """Whether `independent_loss` exists for a task and a model, if the law of the inputs knows the moments that it needs."""
    return (
        isinstance(task, LinearRegression)
        and not task.covariates.shared_covariance
        and isinstance(model, LinearSelfAttention)
        and model.embedding == "merged"
        and not (model.query_in_sum and not task.covariates.independent)
        and not model.causal
        and model.is_single_pass
    )


def _knows_its_moments(law: CovariateDistribution, query_in_sum: bool) -> bool:
    try:
        law.fourth_moment(np.eye(law.dim))
        if query_in_sum:
            law.moments(6)
    except UnsupportedProblemError:
        return False
    return True


def try_build(task: Task, model: eqx.Module) -> Objective | None:
    """`independent_loss`, or None for a task or model whose loss is not known."""
    if not (_supports(task, model) and _knows_its_moments(task.covariates, model.query_in_sum)):  # pyright: ignore
        return None
    return independent_loss(task, model)  # pyright: ignore[reportArgumentType]


def independent_loss(task: LinearRegression, model: LinearSelfAttention) -> MomentLoss:
    """The exact half loss, from moments of (d+1)(d+2)d/2 features.

    Args:
      task: covariates whose inputs are independent of each other; any task covariance and noise.
      model: one non-causal layer on merged tokens. If the query is in its sum, the coordinates of an input have to be
        independent too, with known sixth moments.

    Returns:
      An `IndependentLoss` if the query is not in the sum.

    Raises:
      UnsupportedProblemError: another task or model, or moments of the law that are infinite or not known.
      MemoryBudgetError: too many features.

    Source: derived for the lab; checked against Wick sums, quadrature over literal forward passes, and sampled prompts.
    """
    if not _supports(task, model):
        law = type(task.covariates).__name__ if isinstance(task, LinearRegression) else "none"
        raise UnsupportedProblemError(
            "the loss of independent inputs needs `LinearRegression` whose inputs share no random covariance, and one "
            "non-causal linear layer on merged tokens, with query_in_sum=False or covariates of independent coordinates; got "
            f"{type(task).__name__} with covariates {law} and {model}. Use `objectives.population`."
        )
    d, n = task.dim, task.context_length
    rows, columns = np.triu_indices(d + 1)
    features = Features.of_regression(d)
    if 8 * features.count**2 > MEMORY_LIMIT:
        raise MemoryBudgetError(
            f"the moments of {features.count} features need {8 * features.count**2 / 2**30:.3g} GiB, and "
            f"{MEMORY_LIMIT / 2**30:.3g} GiB are allowed. Use a smaller d (features grow as d^3) or `StreamedLoss`."
        )
    rho = n if model.normaliser == "context_length" else 1
    covariance, tasks = np.asarray(task.covariance, np.float64), np.asarray(task.task_covariance, np.float64)
    noise = float(task.noise_std) ** 2
    signal, inputs = covariance @ tasks @ covariance, _fourth_moments(task.covariates)
    same = _same_example(inputs, covariance, tasks, noise)
    pairs = n * same + n * (n - 1) * _two_examples(covariance, signal, tasks, noise)
    pairs = pairs[rows, columns][:, rows, columns] / rho**2
    gram = np.kron(pairs, covariance)
    if model.query_in_sum:
        # The cross moment with the target stays as it is: E[q_a q_b q_e w.x_q] is odd in w.
        mean = n * np.block([[covariance, np.zeros((d, 1))], [np.zeros((1, d)), np.sum(covariance * tasks) + noise]])
        gram = gram + _of_the_query(task.covariates, mean[rows, columns], inputs, features) / rho**2
    # E[C_ab (Lambda w)_c]: only the column (x, y) of C is odd in w.
    cross = np.zeros((d + 1, d + 1, d))
    cross[:d, d] = n * signal
    moments = Moments(
        gram=gram, cross=cross[rows, columns].reshape(-1, 1) / rho, variance=np.asarray(np.sum(covariance * tasks))
    )
    if model.query_in_sum:
        return MomentLoss(task=task, model=model, features=features, moments=moments)
    return IndependentLoss(task=task, model=model, features=features, moments=moments, pairs=pairs, queries=covariance)


def _fourth_moments(law: CovariateDistribution) -> Float[np.ndarray, "d d d d"]:
    """E[x_i x_j x_k x_l]."""
    d, unit = law.dim, np.eye(law.dim)
    # fourth_moment(A) = E[x x^T A x x^T], so that basis matrices A give E[x_i x_k x_l x_j].
    blocks = [[np.asarray(law.fourth_moment(np.outer(unit[k], unit[m]))) for m in range(d)] for k in range(d)]
    return np.array(blocks, np.float64).transpose(2, 0, 1, 3)


def _of_the_query(
    law: CovariateDistribution, mean: Float[np.ndarray, "P"], inputs: Float[np.ndarray, "d d d d"], features: Features
) -> Float[np.ndarray, "F F"]:
    """The terms of rho^2 E[phi phi^T] that are there because the query attends to itself.

    Args:
      law: independent coordinates.
      mean: E[S_ab] over the pairs of the features.
      inputs: E[x_i x_j x_k x_l].
      features: all pairs and queries.
    """
    d, rows, columns = law.dim, np.asarray(features.rows), np.asarray(features.columns)
    of_inputs = np.flatnonzero(columns < d)  # the query has no label
    fourth = np.zeros((len(rows), d, d))
    fourth[of_inputs] = inputs[rows[of_inputs], columns[of_inputs]]
    mixed = np.einsum("p,qef->peqf", mean, fourth).reshape(features.count, features.count)
    powers = np.zeros((len(rows), d, d), int)  # of x_1 .. x_d in q_a q_b q_e, for each (a, b) and e
    for index in (rows, columns):
        powers[of_inputs, :, index[of_inputs]] += 1
    powers[:, range(d), range(d)] += 1
    active = (of_inputs[:, None] * d + np.arange(d)[None, :]).ravel()
    sixth = np.zeros((features.count, features.count))
    sixth[np.ix_(active, active)] = _monomials(law, powers.reshape(-1, d)[active])
    return mixed + mixed.T + sixth


def _monomials(law: CovariateDistribution, powers: Int[np.ndarray, "K d"]) -> Float[np.ndarray, "K K"]:
    """E[x^(alpha + beta)] over all pairs of the exponents alpha, beta, each of degree 3."""
    table = np.zeros((7, law.dim))
    table[0] = 1.0
    for order in (2, 4, 6):
        table[order] = law.moments(order)
    product = np.ones((len(powers), len(powers)))
    for coordinate in range(law.dim):
        product *= table[powers[:, None, coordinate] + powers[None, :, coordinate], coordinate]
    return product


def _same_example(
    inputs: Float[np.ndarray, "d d d d"], covariance: Array, tasks: Array, noise: float
) -> Float[np.ndarray, "D D D D"]:
    """E[z_a z_b z_c z_d] for z = (x, w.x + noise)."""
    labelled = np.einsum("ijkl,kl->ij", inputs, tasks)  # E[x_i x_j (w.x)^2]
    both = labelled + noise * covariance
    fourth = 3 * np.sum(labelled * tasks) + 6 * noise * np.sum(covariance * tasks) + 3 * noise**2
    return _by_labels(inputs, both, both, fourth)


def _two_examples(covariance: Array, signal: Array, tasks: Array, noise: float) -> Float[np.ndarray, "D D D D"]:
    """E_w[C_ab C_cd], C = E[z z^T | w] = ((Lambda, Lambda w), (w^T Lambda, w^T Lambda w + noise))."""
    label = np.sum(covariance * tasks) + noise
    inputs = covariance[:, :, None, None] * covariance
    return _by_labels(inputs, label * covariance, signal, label**2 + 2 * np.sum(tasks * signal))


def _by_labels(inputs: Array, apart: Array, across: Array, fourth: float) -> Float[np.ndarray, "D D D D"]:
    """A tensor over (a b)(c d) from its entries by number of labels; odd numbers vanish.

    Args:
      inputs: (d, d, d, d), no label.
      apart: (d, d), both labels in one pair.
      across: (d, d), a label in each pair.
      fourth: four labels.
    """
    d = len(apart)
    full = np.zeros((d + 1,) * 4)
    full[:d, :d, :d, :d] = inputs
    full[:d, :d, d, d] = full[d, d, :d, :d] = apart
    full[:d, d, :d, d] = full[:d, d, d, :d] = full[d, :d, :d, d] = full[d, :d, d, :d] = across
    full[d, d, d, d] = fourth
    return full
