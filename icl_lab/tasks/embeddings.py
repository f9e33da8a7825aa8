"""Embeddings: how a prompt becomes tokens. Tokens are rows, the query token is the last row.

| name           | tokens                                              | shape           |
| -------------- | --------------------------------------------------- | --------------- |
| `merged`       | (x_i, y_i), then (x_q, 0)                           | (N+1, d+k)      |
| `interleaved`  | (x_1, 0), (0, y_1), .., (x_N, 0), (0, y_N), (x_q, 0) | (2N+1, d+k)    |
| `hankel`       | (z_i, .., z_{i+p}), then (z_{n-p+1}, .., z_n, 0)    | (N+1, p+1)      |
| `paired`       | (0, x_t, x_{t-1}), t = 1 .. N+1, x_0 = 0            | (N+1, 3d)       |
| `paired_short` | (x_t, x_{t-1}), t = 1 .. N+1, x_0 = 0               | (N+1, 2d)       |

`hankel` takes prompts of a scalar series z_1 .. z_n (AR tasks), the paired ones sequences of states (linear dynamics).
Whether the query token takes part in the attention sum is the model's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Inexact

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import Prompt
from icl_lab.tasks.series.autoregressive import series

Embedding = Callable[[Prompt], Array]


def merged(prompt: Prompt, query_label: Inexact[Array, "k"] | None = None) -> Inexact[Array, "T D"]:
    """One token per example, (x_i, y_i), and (x_q, query_label) last; the query's label slot holds 0 unless given.

    Source: Zhang, Frei, Bartlett (arXiv 2306.09927), whose tokens are columns; von Oswald et al. (arXiv 2212.07677)
    fill the slot with -W_0 x_q, the negative prediction of the initial weights.

    Examples:
      >>> import numpy as np
      >>> from icl_lab.tasks import embeddings
      >>> from icl_lab.tasks import Prompt
      >>> inputs = np.array([[1.0], [2.0], [3.0]])
      >>> prompt = Prompt(inputs, labels=2 * inputs, query=np.array([5.0]), target=np.array([10.0]), latent=np.array([2.0]))
      >>> print(embeddings.merged(prompt))
      [[1. 2.]
       [2. 4.]
       [3. 6.]
       [5. 0.]]
    """
    slot = jnp.zeros_like(prompt.labels[0]) if query_label is None else query_label
    inputs = jnp.concatenate([prompt.inputs, prompt.query[None]])
    labels = jnp.concatenate([prompt.labels, slot[None]])
    return jnp.concatenate([inputs, labels], axis=1)


def interleaved(prompt: Prompt) -> Inexact[Array, "T D"]:
    """Inputs and labels as tokens of their own, each with its own slots: (x_i, 0), (0, y_i), and (x_q, 0) last."""
    count, dim = prompt.inputs.shape
    label_dim = prompt.labels.shape[1]
    inputs = jnp.pad(prompt.inputs, ((0, 0), (0, label_dim)))
    labels = jnp.pad(prompt.labels, ((0, 0), (dim, 0)))
    examples = jnp.stack([inputs, labels], axis=1).reshape(2 * count, dim + label_dim)
    return jnp.concatenate([examples, jnp.pad(prompt.query, (0, label_dim))[None]])


def hankel(prompt: Prompt) -> Inexact[Array, "T D"]:
    """The columns of the Hankel matrix of the observed series, as rows, the last one completed by 0.

    Raises:
      InvalidValueError: labels of more than one coordinate, so not a scalar series.

    Source: Zhou et al. (arXiv 2510.09776), whose tokens are columns.
    """
    if prompt.labels.shape[1] != 1:
        raise InvalidValueError(
            f"`hankel` embeds scalar series, labels of dimension 1; these have dimension {prompt.labels.shape[1]}."
        )
    count, order = prompt.inputs.shape
    values = jnp.pad(series(prompt), (0, 1))
    return values[jnp.arange(count + 1)[:, None] + jnp.arange(order + 1)[None, :]]


def paired(prompt: Prompt) -> Inexact[Array, "T D"]:
    """Each state with its predecessor and an empty slot in front: (0, x_t, x_{t-1}).

    Raises:
      InvalidValueError: labels and inputs of different dimensions, so not a sequence of states.

    Source: Zheng et al. (arXiv 2405.16845), whose tokens are columns.
    """
    short = paired_short(prompt)
    return jnp.pad(short, ((0, 0), (short.shape[1] // 2, 0)))


def paired_short(prompt: Prompt) -> Inexact[Array, "T D"]:
    """`paired` without its empty slot: (x_t, x_{t-1}).

    Raises:
      InvalidValueError: labels and inputs of different dimensions, so not a sequence of states.
    """
    if prompt.labels.shape != prompt.inputs.shape:
        raise InvalidValueError(
            "`paired` embeds sequences of states, whose labels have the dimension of the inputs; these have dimensions "
            f"{prompt.labels.shape[1]} and {prompt.inputs.shape[1]}."
        )
    states = jnp.concatenate([prompt.inputs, prompt.query[None]])
    previous = jnp.pad(prompt.inputs, ((1, 0), (0, 0)))
    return jnp.concatenate([states, previous], axis=1)


def positioned(prompt: Prompt) -> Inexact[Array, "T D"]:
    """`interleaved` with room to copy the next token by its position: (one-hot position, content, empty copy).

    Source: von Oswald et al. (arXiv 2212.07677), Proposition 3.
    """
    return with_positions(interleaved(prompt))


def with_positions(contents: Inexact[Array, "T c"]) -> Inexact[Array, "T D"]:
    """The tokens (one-hot position, content, empty copy) of any contents, D = T + 2c."""
    positions = jnp.eye(contents.shape[0], dtype=contents.dtype)
    return jnp.concatenate([positions, jnp.asarray(contents), jnp.zeros_like(contents)], axis=1)


def sinusoidal(prompt: Prompt) -> Inexact[Array, "T D"]:
    """`interleaved` behind ten slots of sinusoidal position: sines and cosines of t / 10^(4k/5), k = 0 .. 4.

    Source: von Oswald et al. (arXiv 2212.07677), their experiment with separate input and label tokens.
    """
    contents = interleaved(prompt)
    rates = 10.0 ** (-4 * jnp.arange(5, dtype=jnp.real(contents).dtype) / 5)
    angles = jnp.arange(contents.shape[0], dtype=jnp.real(contents).dtype)[:, None] * rates[None]
    positions = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1).astype(contents.dtype)
    return jnp.concatenate([positions, contents], axis=1)


EMBEDDINGS: Mapping[str, Embedding] = MappingProxyType(
    {function.__name__: function for function in (merged, interleaved, positioned, sinusoidal, hankel, paired, paired_short)}
)
"""Every embedding by its name."""


def embedding(name: str) -> Embedding:
    """The embedding called `name`.

    Raises:
      InvalidValueError: no embedding of that name; the message lists them.
    """
    if name not in EMBEDDINGS:
        raise InvalidValueError(f"`embedding` must be one of {', '.join(EMBEDDINGS)}; got {name!r}.")
    return EMBEDDINGS[name]
