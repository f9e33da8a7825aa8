"""A regression task shown at test time with scaled inputs, scaled tasks, or another number of examples."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError, UnsupportedProblemError
from icl_lab.core.linalg import is_traced
from icl_lab.core.typing import Array, Key
from icl_lab.tasks.prompt import Prompt, Task, as_default_float, as_float64
from icl_lab.tasks.regression.linear import LinearRegression
from icl_lab.tasks.regression.nonlinear import NonlinearRegression


class Rescaled(Task):
    """y_i = beta f(alpha x_i) + ε_i at inputs alpha x_i, where y_i = f(x_i) + ε_i is another task; the noise keeps its size.

    At scales 1 and the task's own length the prompts are the task's own. For a linear task beta multiplies the task vector. The
    scales are arrays, so that one compilation serves all their values.

    Args:
      task: linear or nonlinear regression.
      input_scale: alpha, of context and query.
      task_scale: beta.
      context_length: number of examples shown; the task's own by default.

    Attributes:
      task: the task, of the length shown.

    Raises:
      UnsupportedProblemError: another kind of task, whose responses to other inputs are not known.
      InvalidValueError: a scale that is not finite, or a length below 1.

    Source: von Oswald et al. (arXiv 2212.07677), test tasks outside the training distribution.
    """

    dim: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    task: LinearRegression | NonlinearRegression
    input_scale: Float[Array, ""]
    task_scale: Float[Array, ""]

    def __init__(
        self,
        task: Task,
        input_scale: float | Float[Array, ""] = 1.0,
        task_scale: float | Float[Array, ""] = 1.0,
        context_length: int | None = None,
    ):
        if not isinstance(task, LinearRegression | NonlinearRegression):
            raise UnsupportedProblemError(
                "Only regression tasks can be rescaled, `LinearRegression` and `NonlinearRegression`, whose responses to other "
                f"inputs are known; got {type(task).__name__}."
            )
        length = task.context_length if context_length is None else context_length
        self.dim, self.label_dim, self.context_length = task.dim, task.label_dim, length
        self.task = task.with_context_length(length)
        self.input_scale, self.task_scale = as_float64(input_scale), as_float64(task_scale)

    def __check_init__(self):
        for name in ("input_scale", "task_scale"):
            value = getattr(self, name)
            if not is_traced(value) and not np.all(np.isfinite(np.asarray(value))):
                raise InvalidValueError(f"`{name}` must be a finite number; got {np.asarray(value).tolist()!r}.")

    def with_context_length(self, length: int) -> Rescaled:
        return Rescaled(self.task, self.input_scale, self.task_scale, length)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is that of the task, a linear task's vector times beta."""
        prompt = self.task.sample(key)
        alpha, beta = as_default_float(self.input_scale), as_default_float(self.task_scale)
        points = jnp.concatenate([prompt.inputs, prompt.query[None]])
        before, after = (self._responses(prompt, inputs) for inputs in (points, alpha * points))
        linear = isinstance(self.task, LinearRegression)
        return Prompt(
            inputs=alpha * prompt.inputs,
            labels=beta * after[:-1] + (prompt.labels - before[:-1]),
            query=alpha * prompt.query,
            target=beta * after[-1],
            latent=beta * prompt.latent if linear else prompt.latent,
        )

    def _responses(self, prompt: Prompt, inputs: Float[Array, "M d"]) -> Float[Array, "M 1"]:
        if isinstance(self.task, LinearRegression):
            return (inputs @ prompt.latent)[:, None]
        return jax.vmap(self.task.response, in_axes=(None, 0))(prompt.latent, inputs)[:, None]
