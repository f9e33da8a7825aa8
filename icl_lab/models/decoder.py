"""A GPT-2-style decoder that reads examples as a sequence x_1, y_1, x_2, y_2, ... and predicts y at every x.

Pre-norm blocks of causal multi-head softmax attention and a GELU perceptron, learned absolute positions, a linear read-in of
the tokens and a linear read-out at the x tokens. Unlike the lab's other models it has no theory of its own: it is what large
models are made of, to be set beside the theory of the linear layer (arXiv 2306.09927, Section 5).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from icl_lab.core.errors import InvalidValueError
from icl_lab.core.typing import Array
from icl_lab.tasks.prompt import check_count


class Block(nnx.Module):
    """One pre-norm block: x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.perceptron_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 4 * width, rngs=rngs)
        self.contract = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, stream: Float[Array, "T width"], mask: Float[jax.Array, "1 T T"]) -> Float[Array, "T width"]:
        stream = stream + self.attention(self.attention_norm(stream), mask=mask)
        return stream + self.contract(nnx.gelu(self.expand(self.perceptron_norm(stream))))


class Decoder(nnx.Module):
    """A causal transformer that answers every prefix of a sequence of examples.

    Attributes:
      dim: d, dimension of an input.
      examples: most (x, y) pairs that the learned positions reach.

    Args:
      dim: d >= 1.
      examples: at least 1.
      width: of the residual stream, a multiple of `heads`.
      layers: number of blocks.
      heads: attention heads of each block.
      rngs: flax's random streams; `nnx.Rngs(seed)`.

    Raises:
      InvalidValueError: a size below 1, or a width that is no multiple of the heads.
    """

    def __init__(self, dim: int, examples: int, *, width: int = 64, layers: int = 3, heads: int = 4, rngs: nnx.Rngs):
        for name, value in (("dim", dim), ("examples", examples), ("width", width), ("layers", layers), ("heads", heads)):
            check_count(value, name, 1, "It is a size of the transformer.")
        if width % heads:
            raise InvalidValueError(f"`width` must be a multiple of `heads`; got width {width} and {heads} heads.")
        self.dim, self.examples = dim, examples
        self.read_in = nnx.Linear(dim + 1, width, rngs=rngs)
        self.positions = nnx.Embed(2 * examples, width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(layers)])
        self.final_norm = nnx.LayerNorm(width, rngs=rngs)
        self.read_out = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, inputs: Float[Array, "n d"], labels: Float[Array, "n"]) -> Float[Array, "n"]:
        """The answer at every input, from the examples before it; the last label is never seen by any answer.

        Args:
          inputs: (n, d), n at most `examples`.
          labels: (n,).

        Raises:
          InvalidValueError: more examples than there are positions.
        """
        count = len(inputs)
        if count > self.examples:
            raise InvalidValueError(f"the decoder has positions for {self.examples} examples; got {count}.")
        # The label is a token of its own, and its slot tells it from an input.
        questions = jnp.concatenate([inputs, jnp.zeros((count, 1), inputs.dtype)], axis=1)
        answers = jnp.concatenate([jnp.zeros_like(inputs), labels[:, None]], axis=1)
        tokens = jnp.stack([questions, answers], axis=1).reshape(2 * count, self.dim + 1)
        stream = self.read_in(tokens) + self.positions(jnp.arange(2 * count))
        mask = nnx.make_causal_mask(jnp.zeros(2 * count))
        for block in self.blocks:
            stream = block(stream, mask)
        return self.read_out(self.final_norm(stream[::2]))[:, 0]
