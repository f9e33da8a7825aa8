r"""Two predictors compared as functions, on fresh prompts: how far apart their predictions and their sensitivities are.

The sensitivity of a predictor at a prompt is the derivative of its prediction by the query input. Predictions and
sensitivities have no gauge, so these comparisons hold for any architecture and any estimator.

von Oswald et al. (arXiv 2212.07677, Section 3) report the means of the prediction distance, of the sensitivity distance
and of the cosine between sensitivities; the same three are here, each with its standard error.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Inexact

from icl_lab.analysis.sampling import Estimate, Predictor, sample_mean
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task


class FunctionComparison(eqx.Module):
    r"""How a predictor f differs from a reference g, over prompts.

    Attributes:
      prediction_distance: root mean square of :math:`\lVert f - g \rVert`.
      mean_prediction_distance: mean of :math:`\lVert f - g \rVert`.
      prediction_scale: root mean square of :math:`\lVert g \rVert`, to judge the distance by.
      sensitivity_distance: mean of :math:`\lVert \partial f - \partial g \rVert_F`, derivatives by the query input.
      sensitivity_scale: mean of :math:`\lVert \partial g \rVert_F`.
      cosine: mean cosine between the sensitivities as vectors; 0 where one of them vanishes.
      prompts: number of prompts.
    """

    prediction_distance: Estimate
    mean_prediction_distance: Estimate
    prediction_scale: Estimate
    sensitivity_distance: Estimate
    sensitivity_scale: Estimate
    cosine: Estimate
    prompts: int = eqx.field(static=True)

    def __str__(self) -> str:
        rows = (
            ("prediction distance (rms)", self.prediction_distance),
            ("prediction distance (mean)", self.mean_prediction_distance),
            ("  reference prediction (rms)", self.prediction_scale),
            ("sensitivity distance (mean)", self.sensitivity_distance),
            ("  reference sensitivity (mean)", self.sensitivity_scale),
            ("cosine of sensitivities (mean)", self.cosine),
        )
        return "\n".join([f"{name:30}  {value}" for name, value in rows])


def sensitivity(predictor: Predictor, prompt: Prompt) -> Inexact[Array, "k m"]:
    r"""The derivative of a prediction by the query input.

    Args:
      predictor: function of one prompt that returns (k,).
      prompt: one prompt with query (d,).

    Returns:
      (k, d) Jacobian for a real query. For a complex one, (k, 2d): the derivatives by x and by its conjugate,
      :math:`[\partial_x f, \partial_{\bar x} f]`, of which a prediction W x_q has W and 0.
    """

    def predict(query):
        return predictor(eqx.tree_at(lambda p: p.query, prompt, query))

    query = jnp.asarray(prompt.query)
    if jnp.iscomplexobj(query):
        directions = jnp.eye(query.shape[0], dtype=query.dtype)
        along = jax.vmap(lambda direction: jax.jvp(predict, (query,), (direction,))[1], out_axes=1)
        real, imaginary = along(directions), along(1j * directions)
        return jnp.concatenate([real - 1j * imaginary, real + 1j * imaginary], axis=1) / 2
    if jnp.issubdtype(jax.eval_shape(predict, query).dtype, jnp.complexfloating):
        return jax.jacfwd(predict)(query)
    return jax.jacrev(predict)(query)


def compare_functions(
    task: Task, predictor: Predictor, reference: Predictor, key: Key, prompts: int = 4096, chunk: int = 1024
) -> FunctionComparison:
    """Distances between two predictors and between their sensitivities on fresh prompts of a task.

    Args:
      task: distribution of the prompts.
      predictor: function of one prompt that returns (k,), such as `equinox.Partial(model, weights)`.
      reference: another one, such as `estimators.named("ols")`.
      key: random key.
      prompts: number of prompts, rounded up to whole chunks.
      chunk: prompts held in memory at once.

    Returns:
      The comparison, as float64 numpy.

    Raises:
      InvalidValueError: fewer than two prompts.

    Examples:
      Least squares beside ridge regression with a small penalty:

      >>> import jax
      >>> from icl_lab import analysis, estimators, tasks
      >>> task = tasks.LinearRegression(dim=2, context_length=8)
      >>> ridge, ols = estimators.named("ridge", penalty=1e-3), estimators.named("ols")
      >>> found = analysis.compare_functions(task, ridge, ols, jax.random.key(0), prompts=1024)
      >>> round(float(found.cosine.mean), 3), float(found.prediction_distance.mean) < 1e-3
      (1.0, True)
    """
    values, count = sample_mean(eqx.Partial(_distances, predictor, reference), task, key, prompts, chunk)
    square, distance, scale_square, gap, scale, cosine = values
    return FunctionComparison(
        prediction_distance=_root(square),
        mean_prediction_distance=distance,
        prediction_scale=_root(scale_square),
        sensitivity_distance=gap,
        sensitivity_scale=scale,
        cosine=cosine,
        prompts=count,
    )


def _distances(predictor: Predictor, reference: Predictor, prompt: Prompt) -> tuple[Array, ...]:
    first, second = predictor(prompt), reference(prompt)
    first_slope, second_slope = sensitivity(predictor, prompt), sensitivity(reference, prompt)
    first_norm, second_norm = jnp.linalg.norm(first_slope), jnp.linalg.norm(second_slope)
    norms = first_norm * second_norm
    inner = jnp.sum(jnp.real(jnp.conj(first_slope) * second_slope))
    cosine = jnp.where(norms > 0, inner / jnp.where(norms > 0, norms, 1.0), 0.0)
    distance = jnp.linalg.norm(first - second)
    gap = jnp.linalg.norm(first_slope - second_slope)
    return distance**2, distance, jnp.sum(jnp.abs(second) ** 2), gap, second_norm, cosine


def _root(square: Estimate) -> Estimate:
    """The square root of a mean, its standard error by the delta method."""
    root = np.sqrt(square.mean)
    return Estimate(root, square.standard_error / (2 * root) if root > 0 else np.zeros_like(root), square.largest_share)
