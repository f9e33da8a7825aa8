r"""The exact loss of one linear attention layer on linear regression whose inputs are independent, whatever their distribution.

Given w the examples z_i = (x_i, y_i) of a prompt are independent of each other and of the query, so with G the attention Gram
over N examples (query not among them)

.. math:: E[G_{ab} G_{cd}] = \tfrac{1}{\rho^2}\left(N\, E[z_a z_b z_c z_d]
          + N (N - 1)\, E_w\!\left[C_{ab} C_{cd}\right]\right), \qquad C = E[z z^\top | w]

and E[phi phi^T] is its Kronecker product with the covariance of the query. Only moments of x up to the fourth enter, and those
of the Gaussian w and noise.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import MemoryBudgetError, UnsupportedProblemError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.exact.moments import Features, MomentLoss, MomentPolynomial, Moments
from icl_lab.objectives.objective import Loss, Objective
from icl_lab.objectives.sampled import MEMORY_LIMIT
from icl_lab.tasks.distributions.covariates import CovariateDistribution, Gaussian, Sphere, Uniform
from icl_lab.tasks.prompt import Task
from icl_lab.tasks.regression.linear import LinearRegression


class IndependentLoss(MomentLoss):
    """The exact half loss, evaluated by the two factors of E[phi phi^T], a hundred times smaller than the product.

    Attributes:
      pairs: (P, P), E[G_ab G_cd] over the pairs of the features.
      queries: (Q, Q), the covariance of the query.
    """

    pairs: Float[Array, "P P"]
    queries: Float[Array, "Q Q"]

    @property
    def bare(self) -> Loss:
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
    """Whether `independent_loss` exists for a task and a model."""
    return (
        isinstance(task, LinearRegression)
        and isinstance(task.covariates, Gaussian | Uniform | Sphere)
        and isinstance(model, LinearSelfAttention)
        and model.embedding == "merged"
        and not model.query_in_sum
        and not model.causal
        and model.is_single_pass
    )


def try_build(task: Task, model: eqx.Module) -> Objective | None:
    """`independent_loss`, or None for a task or model whose loss is not known."""
    return independent_loss(task, model) if _supports(task, model) else None  # pyright: ignore[reportArgumentType]


def independent_loss(task: LinearRegression, model: LinearSelfAttention) -> IndependentLoss:
    """The exact half loss, from moments of (d+1)(d+2)d/2 features.

    Args:
      task: Gaussian, uniform or spherical covariates; any task covariance and noise.
      model: one non-causal layer on merged tokens that leaves the query out of its sum.

    Raises:
      UnsupportedProblemError: another task or model.
      MemoryBudgetError: too many features.
    """
    if not _supports(task, model):
        raise UnsupportedProblemError(
            "the loss of independent inputs needs `LinearRegression` with Gaussian, uniform or spherical covariates and one "
            "non-causal linear layer on merged tokens with query_in_sum=False; got "
            f"{type(task).__name__} and {model}. Use `objectives.population`."
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
    signal = covariance @ tasks @ covariance
    pairs = n * _same_example(task.covariates, tasks, noise) + n * (n - 1) * _two_examples(covariance, signal, tasks, noise)
    # E[C_ab (Lambda w)_c]: only the column (x, y) of C is odd in w.
    cross = np.zeros((d + 1, d + 1, d))
    cross[:d, d] = n * signal
    pairs = pairs[rows, columns][:, rows, columns] / rho**2
    moments = Moments(
        gram=np.kron(pairs, covariance),
        cross=cross[rows, columns].reshape(-1, 1) / rho,
        variance=np.asarray(np.sum(covariance * tasks)),
    )
    return IndependentLoss(task=task, model=model, features=features, moments=moments, pairs=pairs, queries=covariance)


def _same_example(distribution: CovariateDistribution, tasks: Array, noise: float) -> Float[np.ndarray, "D D D D"]:
    """E[z_a z_b z_c z_d] for z = (x, w.x + noise)."""
    d = distribution.dim
    covariance, unit = np.asarray(distribution.covariance), np.eye(d)
    # fourth_moment(A) = E[x x^T A x x^T], so that basis matrices A give E[x_i x_k x_l x_j].
    blocks = [[np.asarray(distribution.fourth_moment(np.outer(unit[k], unit[m]))) for m in range(d)] for k in range(d)]
    inputs = np.array(blocks).transpose(2, 0, 1, 3)
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
