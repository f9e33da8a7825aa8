"""Associative recall: keys with values, and the question which value belongs to one of the keys."""

from __future__ import annotations

import equinox as eqx
import jax

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.linalg import haar_orthogonal
from icl_lab.core.prng import stream
from icl_lab.core.typing import Key
from icl_lab.tasks.distributions.covariates import Sphere, normals
from icl_lab.tasks.prompt import Prompt, Task, check_count, check_prompt_fits


class AssociativeRecall(Task):
    """N pairs of a key k_i (d,) and a value v_i ~ N(0, I_m); the query is one of the keys, the target its value.

    Keys are independent and uniform on the unit sphere, or orthonormal: then the keys of a prompt are N columns of a Haar
    matrix. Which key is asked for is uniform, so that a memory that forgets early pairs is found out.

    Args:
      dim: d >= 1, width of a key.
      context_length: N >= 1 pairs; at most d if keys are orthonormal.
      label_dim: m >= 1, width of a value.
      orthonormal: whether the keys of a prompt are orthogonal to each other.

    Raises:
      InvalidValueError: a size below 1, or more orthonormal keys than dimensions.

    Examples:
      >>> import jax
      >>> from icl_lab import tasks
      >>> prompt = tasks.AssociativeRecall(dim=4, context_length=3, label_dim=2).sample(jax.random.key(0))
      >>> asked = int(prompt.latent)
      >>> bool((prompt.query == prompt.inputs[asked]).all()), bool((prompt.target == prompt.labels[asked]).all())
      (True, True)
    """

    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)
    orthonormal: bool = eqx.field(static=True)
    nested = False

    def __init__(self, dim: int, context_length: int, label_dim: int = 1, orthonormal: bool = False):
        self.dim, self.context_length, self.label_dim = dim, context_length, label_dim
        self.orthonormal = orthonormal

    def __check_init__(self):
        check_count(self.dim, "dim", 1, "A key has at least one coordinate.")
        check_count(self.context_length, "context_length", 1, "A prompt shows at least the pair that it asks for.")
        check_count(self.label_dim, "label_dim", 1, "A value has at least one coordinate.")
        if self.orthonormal and self.context_length > self.dim:
            raise InvalidValueError(
                f"`context_length` must be at most dim = {self.dim} if keys are orthonormal, as no more of them exist; got "
                f"{self.context_length}."
            )

    def with_context_length(self, length: int) -> AssociativeRecall:
        return AssociativeRecall(self.dim, length, self.label_dim, self.orthonormal)

    def sample(self, key: Key) -> Prompt:
        """One prompt; its latent is the position of the key that is asked for, counted from 0."""
        check_prompt_fits(self.context_length, max(self.dim, self.label_dim))
        inputs = stream(key, "inputs")
        if self.orthonormal:
            keys = haar_orthogonal(inputs, self.dim)[: self.context_length]
        else:
            keys = Sphere(self.dim).sample(inputs, self.context_length)
        values = normals(stream(key, "values"), self.context_length, self.label_dim)
        asked = jax.random.randint(stream(key, "query"), (), 0, self.context_length)
        return Prompt(inputs=keys, labels=values, query=keys[asked], target=values[asked], latent=asked)
