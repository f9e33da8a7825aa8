"""`Prompt`: one in-context problem, the only thing that estimators and models see of a task."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError, NonFiniteError, UnsupportedProblemError
from icl_lab.core.linalg import is_traced
from icl_lab.core.prng import stream
from icl_lab.core.typing import Array, Key

LARGEST_PROMPT = 2**27
"""Numbers in the inputs of one prompt, a gigabyte in float64."""


class Prompt(eqx.Module):
    """N labelled examples, a query, and what should be answered.

    Library functions take one prompt; `jax.vmap` adds the batch. Tokens and examples are rows.

    Attributes:
      inputs: (N, d) covariates. AR(p): lag windows in time order, oldest first. x_{t+1} = W x_t: x_1 .. x_N.
      labels: (N, k) responses. Sequences: the value that follows each input.
      query: (d,) the input whose label is asked for.
      target: (k,) the answer the loss compares with: the *noiseless* response for regression tasks (query noise adds
        a constant to every risk and variance to every estimate), the actual next value for sequences.
      latent: the task parameter that generated the prompt (task vector, AR coefficients, W, ...).

    Examples:
      A prompt written out by hand, with labels y = 2 x:

      >>> import numpy as np
      >>> from icl_lab.tasks import Prompt
      >>> prompt = Prompt(
      ...     inputs=np.array([[1.0], [2.0], [3.0]]),
      ...     labels=np.array([[2.0], [4.0], [6.0]]),
      ...     query=np.array([5.0]),
      ...     target=np.array([10.0]),
      ...     latent=np.array([2.0]),
      ... )
      >>> prompt.inputs.shape, prompt.query.shape
      ((3, 1), (1,))
    """

    inputs: Inexact[Array, "N d"]
    labels: Inexact[Array, "N k"]
    query: Inexact[Array, "d"]
    target: Inexact[Array, "k"]
    latent: Any = None


class Task(eqx.Module):
    """A distribution of prompts. Subclasses are immutable pytrees: arrays are leaves, sizes are static.

    `sample` is a pure function of a key and safe under `jit` and `vmap`. A task holds arrays, so it has no hash: write
    `equinox.filter_jit(task.sample)` or `jax.jit(lambda key: task.sample(key))`.

    Attributes:
      dim, label_dim: d and k, the widths of an input and of a label.
      context_length: N, the number of examples.
      nested: whether the first n examples of a prompt are those of a prompt of length n, with the same query or, in a
        sequence, the input that follows them. Where it is false, as where the query depends on the examples near it, prompts
        of other lengths have to be drawn.
    """

    dim: eqx.AbstractVar[int]
    label_dim: eqx.AbstractVar[int]
    context_length: eqx.AbstractVar[int]
    nested: ClassVar[bool] = True

    @abc.abstractmethod
    def sample(self, key: Key) -> Prompt:
        """One prompt."""

    def with_context_length(self, length: int) -> Task:
        """The same distribution of prompts, with another number of examples.

        Args:
          length: the number of examples N, at least 1.

        Returns:
          The task at that length. At its own length it draws the prompts that this one draws.

        Raises:
          InvalidValueError: a length that the task does not have.
          UnsupportedProblemError: a task whose kind does not say what it is at other lengths.
        """
        raise UnsupportedProblemError(
            f"`{type(self).__name__}` exists at its own context length {self.context_length} only; it has no method "
            f"`with_context_length` that says what it is at {length}."
        )

    def sample_batch(self, key: Key, count: int) -> Prompt:
        """`count` independent prompts, stacked along a new first axis; the first prompts do not depend on `count`.

        Examples:
          >>> import jax
          >>> from icl_lab import tasks
          >>> task = tasks.LinearRegression(dim=2, context_length=8)
          >>> prompts = task.sample_batch(jax.random.key(0), 100)
          >>> prompts.inputs.shape, prompts.labels.shape, prompts.query.shape
          ((100, 8, 2), (100, 8, 1), (100, 2))
        """
        return jax.vmap(self.sample)(jax.random.split(key, count))


class RegressionTask(Task):
    """A distribution of prompts of labelled inputs, whose labels are one number each, with independent Gaussian noise.

    Attributes:
      noise_std: standard deviation of the label noise.
      label_dim: 1.

    Raises:
      InvalidValueError: no example, or negative noise.
    """

    noise_std: Float[Array, ""]
    label_dim: int = eqx.field(static=True)

    def __check_init__(self):
        check_count(self.context_length, "context_length", 1, "A prompt shows at least one example.")
        check_nonnegative(self.noise_std, "noise_std")


def check_finite(prompt: Prompt) -> None:
    """Raise `NonFiniteError` if a prompt (or a batch of prompts) holds a NaN or an infinity; says where."""
    for name in ("inputs", "labels", "query", "target"):
        bad = int(np.sum(~np.isfinite(np.asarray(getattr(prompt, name)))))
        if bad:
            raise NonFiniteError(
                f"`prompt.{name}` holds {bad} NaN or infinite value(s); every entry of a prompt must be finite. "
                "Check the task's covariance and noise, or the stability of its recursion."
            )


def check_count(value: int | np.integer, name: str, minimum: int, reason: str) -> None:
    """Raise `InvalidValueError` unless the integer `value` is at least `minimum`; `reason` says why in a clause."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise InvalidValueError(f"`{name}` must be an integer >= {minimum}; got {value!r}. {reason}")


def check_prompt_fits(context_length: int, dim: int) -> None:
    """Raise `MemoryBudgetError` if the inputs of one prompt hold more than `LARGEST_PROMPT` numbers, before they are drawn."""
    if context_length * dim > LARGEST_PROMPT:
        raise MemoryBudgetError(
            f"a prompt of {context_length} examples at d = {dim} holds {context_length * dim} numbers, more than the "
            f"{LARGEST_PROMPT} allowed. Exact losses need no prompts; to draw some, choose a shorter context."
        )


def check_nonnegative(value: Any, name: str) -> None:
    """Raise `InvalidValueError` unless the scalar `value` is finite and >= 0; traced values are not checked."""
    if is_traced(value):
        return
    if not (np.ndim(value) == 0 and np.isfinite(value) and value >= 0):
        raise InvalidValueError(f"`{name}` must be a finite number >= 0; got {np.asarray(value).tolist()!r}.")


def as_float64(x: Any) -> Any:
    """`x` as a float64 numpy array, or unchanged if it is a jax array, traced or not: the converter of fields."""
    return x if isinstance(x, jax.Array) else np.asarray(x, dtype=np.float64)


def as_default_float(x: Any) -> Array:
    """`x` as a jax array of the default float type of the scope in force (float64 inside `precision.float64()`)."""
    return jnp.asarray(x, dtype=jnp.result_type(float))


def add_noise(key: Key, values: Inexact[Array, "*shape"], noise_std: Any) -> Inexact[Array, "*shape"]:
    """`values` plus independent Gaussian noise; nothing is drawn when `noise_std` is 0.

    Complex values get circular noise of E|noise|^2 = noise_std^2.
    """

    def noisy():
        return values + jnp.asarray(noise_std, values.dtype) * jax.random.normal(key, values.shape, values.dtype)

    if is_traced(noise_std):
        return jax.lax.cond(noise_std == 0, lambda: values, noisy)
    return values if float(noise_std) == 0.0 else noisy()


def regression_prompt(
    key: Key, inputs: Float[Array, "M d"], responses: Float[Array, "M k"], noise_std: Any, latent: Any
) -> Prompt:
    """The prompt of a regression task: the last input is the query, its noiseless response the target.

    Args:
      key: of the prompt; the noise has a stream of its own.
      inputs: (N + 1, d), the query last.
      responses: (N + 1, k), without noise.
      noise_std: standard deviation of the noise that is added to the N labels.
      latent: the task parameter that the responses come from.
    """
    labels = add_noise(stream(key, "noise"), responses[:-1], noise_std)
    return Prompt(inputs=inputs[:-1], labels=labels, query=inputs[-1], target=responses[-1], latent=latent)
