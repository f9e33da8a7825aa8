"""In-context regression whose task vector drifts from one example to the next."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import is_traced
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.distributions.covariates import normals
from icl_lab.tasks.prompt import (
    Prompt,
    RegressionTask,
    as_default_float,
    as_float64,
    check_count,
    check_prompt_fits,
    regression_prompt,
)
from icl_lab.tasks.regression.correlated import CorrelatedRegression


class DriftingRegression(RegressionTask):
    r"""y_t = w_t.x_t + ε_t with a stationary Ornstein-Uhlenbeck task vector; the target is the noiseless w_{N+1}.x_q.

    .. math:: w_1 \sim N(0, I), \qquad w_t = a\, w_{t-1} + \sqrt{1 - a^2}\; e_t, \qquad e_t \sim N(0, I),

    x_t ~ N(0, I) and ε_t ~ N(0, noise_std^2). Every w_t is N(0, I), and a coordinate of w_s and w_t has correlation a^|s-t|,
    so the latest examples say most about the query. With a = 1 the vector never moves. This is `CorrelatedRegression` with
    those correlations (see `correlated`), but a prompt of N examples costs O(N), and each coordinate may drift at its own rate.

    Args:
      dim: d >= 1.
      context_length: N >= 1, labelled examples; the query is not counted.
      persistence: a in [-1, 1], one number or one a coordinate (d,).
      noise_std: standard deviation of the label noise, >= 0.

    Attributes:
      persistence: (d,) a of each coordinate.

    Raises:
      InvalidValueError: a size below 1, persistence that is no number or not d numbers in [-1, 1], or negative noise.

    Examples:
      One coordinate that drifts and one that does not:

      >>> import jax
      >>> from icl_lab import tasks
      >>> task = tasks.DriftingRegression(dim=2, context_length=3, persistence=[0.8, 1.0])
      >>> vectors = task.sample(jax.random.key(0)).latent  # w_1 .. w_4
      >>> vectors.shape, bool((vectors[:, 1] == vectors[0, 1]).all())
      ((4, 2), True)
    """

    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    persistence: Float[Array, "d"]
    nested = False

    def __init__(self, dim: int, context_length: int, persistence: Any, noise_std: Any = 0.0):
        check_count(dim, "dim", 1, "An input has at least one coordinate.")
        self.dim, self.context_length, self.label_dim = dim, context_length, 1
        self.persistence = _per_coordinate(persistence, dim)
        self.noise_std = as_float64(noise_std)

    def __check_init__(self):
        # Written so that NaN is refused.
        if not is_traced(self.persistence) and not np.all(np.abs(np.asarray(self.persistence)) <= 1):
            raise InvalidValueError(
                "`persistence` must be in [-1, 1], since it is the correlation of task vectors that follow each other; "
                f"got {np.asarray(self.persistence).tolist()}."
            )

    def with_context_length(self, length: int) -> DriftingRegression:
        return DriftingRegression(self.dim, length, self.persistence, self.noise_std)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent holds the task vectors (N + 1, d) in time order, the query's last."""
        check_prompt_fits(self.context_length, self.dim)
        inputs = normals(stream(key, "inputs"), self.context_length + 1, self.dim)
        draws = normals(stream(key, "task"), self.context_length + 1, self.dim)
        kept = as_default_float(self.persistence)
        fresh = jnp.sqrt(1 - kept**2)

        def step(vector: Float[Array, "d"], draw: Float[Array, "d"]):
            following = kept * vector + fresh * draw
            return following, following

        _, later = jax.lax.scan(step, draws[0], draws[1:])
        vectors = jnp.concatenate([draws[:1], later])
        responses = jnp.sum(inputs * vectors, axis=1, keepdims=True)
        return regression_prompt(key, inputs, responses, self.noise_std, vectors)

    def correlated(self) -> CorrelatedRegression:
        """The same distribution with its (N + 1)^2 correlations written out, for what is known of `CorrelatedRegression`.

        Raises:
          UnsupportedProblemError: coordinates that drift at different rates, whose correlations are not the same.
        """
        first, *others = np.asarray(self.persistence).tolist()
        if any(other != first for other in others):
            raise UnsupportedProblemError(
                "`CorrelatedRegression` has the same correlations in all coordinates; the persistence of these is "
                f"{[first, *others]}."
            )
        place = np.arange(self.context_length + 1)
        correlations = first ** np.abs(place[:, None] - place[None, :])
        return CorrelatedRegression(self.dim, correlations, self.noise_std)


def _per_coordinate(persistence: Any, dim: int) -> Float[Array, "d"]:
    try:
        values = as_float64(persistence)
    except (TypeError, ValueError):
        raise InvalidValueError(f"`persistence` must be a number or {dim} numbers; got {persistence!r}.") from None
    if values.shape not in ((), (dim,)):
        raise InvalidValueError(
            f"`persistence` must be one number or one for each of the {dim} coordinates; got shape {values.shape}."
        )
    spread = jnp.broadcast_to if isinstance(values, jax.Array) else np.broadcast_to
    return spread(values, (dim,))
