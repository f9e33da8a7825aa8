r"""The exact population loss of one layer of linear self-attention on Gaussian linear regression, O(d^3) and no sampling.

The prediction is :math:`\hat y = \sum_h p_h^T (E E^T/\rho) K_h x_q` where p = (p1, p2) is the label row of W_PV and
K = [K1; k2^T] the first d columns of W_KQ; no other entry matters. Under (w, noise) -> -(w, noise) it splits into an odd part
:math:`x_q^T B b/\rho` with the effective preconditioner :math:`B = \sum_h p_{2h} K_{1h}^T + k_{2h} p_{1h}^T` and
:math:`b = \sum_i y_i x_i`, and an even part uncorrelated with the target. Both second moments are Wick sums over Gaussian
covariates, written below with matrix products only. With a random covariance of finite support the loss is the average.

Here tau = tr(Lambda Omega) + s2 is the variance of a label, s2 that of its noise, rho the model's normaliser.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.typing import Array, Key, Weights
from icl_lab.models.linear_attention import LinearSelfAttention
from icl_lab.objectives.objective import LARGEST_SPREAD, Loss, Objective
from icl_lab.objectives.structured import Sides, StructuredLoss, in_subspace
from icl_lab.tasks.prompt import Task, as_float64
from icl_lab.tasks.regression.linear import LinearRegression


class ActiveWeights(eqx.Module):
    """The entries of H heads that one layer's prediction depends on, readout sign included."""

    p1: Float[Array, "H d"]
    p2: Float[Array, "H"]
    k1: Float[Array, "H d d"]
    k2: Float[Array, "H d"]

    @staticmethod
    def of(weights: Weights, readout_sign: float) -> ActiveWeights:
        """The active entries of merged or separate weights, with or without a head axis."""
        heads = _only_layer(weights).merged().with_head_axis()
        last = readout_sign * heads.w_pv[:, -1, :]
        return ActiveWeights(p1=last[:, :-1], p2=last[:, -1], k1=heads.w_kq[:, :-1, :-1], k2=heads.w_kq[:, -1, :-1])


def _only_layer(weights: Weights):
    if isinstance(weights, tuple):
        if len(weights) != 1:
            raise UnsupportedProblemError(
                f"the exact loss is known for one layer; got weights of {len(weights)} layers. Use `StreamedLoss`."
            )
        return weights[0]
    return weights


def mean_squared_error(
    active: ActiveWeights,
    covariance: Float[Array, "d d"],
    task_covariance: Float[Array, "d d"],
    noise_variance: Float[Array, ""] | float,
    context_length: Float[Array, ""] | float,
    normaliser: Float[Array, ""] | float,
    query_in_sum: bool,
) -> Float[Array, ""]:
    r"""E (yhat - w.x_q)^2 for x ~ N(0, Lambda), w ~ N(0, Omega), label noise of variance s2, any weights of H heads.

    Args:
      active: active weights.
      covariance: (d, d), Lambda.
      task_covariance: (d, d), Omega, positive semidefinite.
      noise_variance: s2 >= 0 of the context labels; the query's target is noiseless.
      context_length: N.
      normaliser: rho, by which the attention sum is divided.
      query_in_sum: whether the query token (x_q, 0) is among the attended tokens.

    Source: derived from Wick's theorem; checked against tensor Gauss-Hermite quadrature and conditional Wishart moments.
    """
    n, rho = context_length, normaliser
    lam, om = covariance, task_covariance
    p1, p2, k1, k2 = active.p1, active.p2, active.k1, active.k2

    d_mat = lam @ om @ lam
    tau = jnp.trace(lam @ om) + noise_variance
    m = p2 @ k2  # sum_h p2_h k2_h

    # Odd part: signal against x_q' B b / rho.
    b = jnp.einsum("h,hij->ji", p2, k1) + k2.T @ p1
    ebb = n * (n + 1) * d_mat + n * tau * lam
    lb = lam @ b
    odd = jnp.trace(lam @ om) - (2 * n / rho) * jnp.sum(b * d_mat) + jnp.sum((lb @ ebb) * b) / rho**2

    # Even part; L_h = Lambda p1_h, overlaps[h, g] = p1_h' Lambda p1_g, c[h, g] = K1_g' L_h.
    lp = p1 @ lam
    overlaps = lp @ p1.T
    c = jnp.einsum("gij,hi->hgj", k1, lp)
    own = jnp.einsum("hhj->j", c)  # sum_h K1_h' L_h
    traces = jnp.einsum("hij,gij->hg", lam @ k1 @ lam, k1)  # tr(K1_h Lambda K1_g' Lambda)
    t2 = jnp.trace(om @ d_mat)  # tr(Omega Lambda Omega Lambda)
    even = n**2 * own @ lam @ own + n * jnp.einsum("hgi,ij,ghj->", c, lam, c) + n * jnp.sum(traces * overlaps)
    label_row = n**2 * tau * lp + 2 * n * (p1 @ d_mat)
    even += 2 * jnp.einsum("hi,hij,j->", label_row, k1, lam @ m)
    even += n * (n + 2) * (tau**2 + 2 * t2) * (m @ lam @ m)
    if query_in_sum:
        ks = 0.5 * (k1 + jnp.swapaxes(k1, 1, 2))
        beta = jnp.einsum("hij,ji->h", ks, lam)
        kl = jnp.einsum("gij,hj->hgi", ks, lp)  # Ks_g L_h
        total = jnp.einsum("hhi->i", kl)
        even += 2 * (n * own + n * tau * m) @ (beta @ lp + 2 * lam @ total)
        traces_s = jnp.einsum("hij,gij->hg", lam @ ks @ lam, ks)
        even += jnp.sum(overlaps * (jnp.outer(beta, beta) + 2 * traces_s))
        even += 4 * (beta @ lp) @ total
        # L_g' Ks_h Lambda Ks_g L_h pairs (Ks_h L_g) with (Ks_g L_h).
        even += 4 * (total @ lam @ total + jnp.einsum("ghi,ij,hgj->", kl, lam, kl))
    return odd + even / rho**2


class RegressionPolynomial(Loss):
    """The exact half loss of one layer on Gaussian linear regression, of the numbers that the task consists of.

    Attributes:
      covariances: (S, d, d) support of the covariate covariance, S = 1 if it is fixed.
      probabilities: (S,) of the support.
      task_covariance: (d, d), Omega.
      noise_variance: s2 of the labels.
      context_length: N.
      normaliser: rho, by which the attention sum is divided.
      query_in_sum, readout_sign: see `models.LinearSelfAttention`.
    """

    covariances: Float[Array, "*g S d d"]
    probabilities: Float[Array, "*g S"]
    task_covariance: Float[Array, "*g d d"]
    noise_variance: Float[Array, "*g"]
    context_length: Float[Array, "*g"]
    normaliser: Float[Array, "*g"]
    query_in_sum: bool = eqx.field(static=True)
    readout_sign: float = eqx.field(static=True)

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        active = ActiveWeights.of(weights, self.readout_sign)
        dim, width = self.task_covariance.shape[-1], active.p1.shape[-1]
        if width != dim:
            raise InvalidValueError(
                f"weights act on tokens of width {width + 1}, but the task's merged tokens have width d + 1 = {dim + 1}."
            )
        numbers = (self.task_covariance, self.noise_variance, self.context_length, self.normaliser)
        tasks, noise, length, rho = (jnp.asarray(x, active.p1.dtype) for x in numbers)

        def given(covariance):
            covariance = jnp.asarray(covariance, active.p1.dtype)
            return mean_squared_error(active, covariance, tasks, noise, length, rho, self.query_in_sum)

        if self.covariances.shape[0] == 1:
            return 0.5 * given(self.covariances[0])
        probabilities, covariances = (jnp.asarray(x, active.p1.dtype) for x in (self.probabilities, self.covariances))
        return 0.5 * probabilities @ jax.vmap(given)(covariances)

    def coefficients(self, weights: Weights) -> Float[Array, "D D d"]:
        active = ActiveWeights.of(weights, self.readout_sign)
        values = jnp.concatenate([active.p1, active.p2[:, None]], axis=1)
        scores = jnp.concatenate([active.k1, active.k2[:, None, :]], axis=1)
        product = jnp.einsum("ha,hbc->abc", values, scores)
        # The attention Gram is symmetric.
        return product + jnp.swapaxes(product, 0, 1)

    @property
    def rate_spread(self) -> float:
        covariance = np.einsum("s,sij->ij", self.probabilities, self.covariances)
        numbers = float(self.noise_variance), int(self.context_length)
        second = covariance_of_mean(covariance, np.asarray(self.task_covariance), *numbers)
        return float(np.linalg.cond(covariance) * np.linalg.cond(second))


class RegressionLoss(Objective):
    """Exact half loss of one layer of linear self-attention on Gaussian linear regression.

    Attributes:
      covariances: (S, d, d) support of the covariate covariance, S = 1 if it is fixed.
      probabilities: (S,) of the support.
    """

    task: LinearRegression
    model: LinearSelfAttention
    covariances: Float[Array, "S d d"]
    probabilities: Float[Array, "S"]

    @staticmethod
    def try_build(task: Task, model: eqx.Module) -> RegressionLoss | None:
        """The exact loss, or None for a task or model whose loss is not known."""
        if not (isinstance(model, LinearSelfAttention) and model.embedding == "merged"):
            return None
        if model.causal or not model.is_single_pass or not isinstance(task, LinearRegression):
            return None
        support = task.covariates.support_covariances()
        return None if support is None else RegressionLoss(task, model, *support)

    @staticmethod
    def build(task: Task, model: eqx.Module) -> RegressionLoss:
        """The exact loss.

        Raises:
          UnsupportedProblemError: not Gaussian linear regression with a fixed or finitely supported covariance, or not one
            non-causal layer on merged tokens.
        """
        loss = RegressionLoss.try_build(task, model)
        if loss is None:
            raise UnsupportedProblemError(
                f"no exact loss is known for {type(model).__name__} on {type(task).__name__} in this configuration; it needs "
                "Gaussian linear regression with a fixed or finitely supported covariance and one non-causal linear layer on "
                "merged tokens. Use `objectives.population`, which falls back to sampling."
            )
        return loss

    @property
    def normaliser(self) -> float:
        """rho of the model on prompts of the task's length."""
        return float(self.task.context_length) if self.model.normaliser == "context_length" else 1.0

    @property
    def bare(self) -> RegressionPolynomial:
        task, model = self.task, self.model
        return RegressionPolynomial(
            covariances=self.covariances,
            probabilities=self.probabilities,
            task_covariance=task.task_covariance,
            noise_variance=as_float64(task.noise_std**2),
            context_length=np.asarray(float(task.context_length)),
            normaliser=np.asarray(self.normaliser),
            query_in_sum=model.query_in_sum,
            readout_sign=model.readout_sign,
        )

    def __call__(self, weights: Weights, key: Key | None = None) -> Float[Array, ""]:
        return self.bare(weights)

    def coefficients(self, weights: Weights) -> Float[Array, "D D d"]:
        return self.bare.coefficients(weights)

    def coordinates(self, weights: Weights) -> tuple[Loss, Weights, Callable[[Weights], Weights]]:
        """On the invariant subspace p1 = k2 = 0 those of a `StructuredLoss`, in which the flow is elementwise.

        With c and l the eigenvalues of E[b b^T]/rho^2 and Lambda, A_ij = c_i l_j for any pair of covariances; nothing has to
        commute.
        """
        if self.covariances.shape[0] != 1 or not in_subspace(weights):
            return super().coordinates(weights)
        task = self.task
        covariance = np.asarray(task.covariance)
        diagonal = not np.any(covariance - np.diag(np.diagonal(covariance)))
        values, right = np.linalg.eigh(covariance)
        om = right.T @ np.asarray(task.task_covariance) @ right
        ratio = task.context_length / self.normaliser
        c, rotation = _second_moment_eigenbasis(values, om, float(task.noise_std) ** 2, task.context_length)
        loss = StructuredLoss(
            offset=np.asarray(np.sum(values * np.diagonal(om))),
            signal=ratio * self.model.readout_sign * rotation.T @ (values[:, None] * om * values),
            curvature=np.outer(ratio**2 * c, values),
            # The smallest eigenvalue of a matrix is known to a rounding of the largest, and the weights go like its inverse.
            rounding=np.asarray(0.0 if diagonal else np.finfo(np.float64).eps * values[-1] / values[0]),
        )
        axes = Sides(frozen=weights, left=right @ rotation, right=right)
        return loss, axes.start, axes

    @property
    def graded(self) -> bool:
        # Each covariance of a finite distribution has directions of its own.
        spreads = np.linalg.eigvalsh(self.covariances)
        return bool(self.rate_spread > LARGEST_SPREAD or spreads.max() ** 3 > LARGEST_SPREAD * spreads.min() ** 3)

    @property
    def rate_spread(self) -> float:
        return self.bare.rate_spread


def covariance_of_mean(
    covariance: Float[Array, "d d"], task_covariance: Float[Array, "d d"], noise_variance: float, context_length: int
) -> Float[np.ndarray, "d d"]:
    """E[b b^T]/N^2 with b = sum_i y_i x_i: the curvature of the loss in the left index of U."""
    d_mat = covariance @ task_covariance @ covariance
    tau = np.trace(covariance @ task_covariance) + noise_variance
    return (1 + 1 / context_length) * d_mat + (tau / context_length) * covariance


def _second_moment_eigenbasis(
    values: Float[Array, "d"], task_covariance: Float[Array, "d d"], noise_variance: float, context_length: int
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Eigenvalues and eigenvectors of `covariance_of_mean` in the eigenbasis of Lambda, in which `task_covariance` is given.

    It is L M L with L = Lambda^{1/2} and M = (1 + 1/N) L Omega L + (tau/N) I. Its eigenvalues are the squared singular values
    of L times the root of M: in the product itself, as far apart as the square of Lambda's, the smallest would be lost.
    """
    scale = np.sqrt(values)
    tau = np.sum(values * np.diagonal(task_covariance)) + noise_variance
    inner = (1 + 1 / context_length) * scale[:, None] * task_covariance * scale + (tau / context_length) * np.eye(len(values))
    if not np.any(inner - np.diag(np.diagonal(inner))):
        return np.asarray(values * np.diagonal(inner)), np.eye(len(values))
    inner_values, inner_vectors = np.linalg.eigh(0.5 * (inner + inner.T))
    rotation, singular, _ = np.linalg.svd(scale[:, None] * inner_vectors * np.sqrt(np.maximum(inner_values, 0.0)))
    return singular**2, rotation
