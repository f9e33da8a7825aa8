r"""Layers for contexts whose inputs and labels are separate tokens: copy the successor, then take a gradient step.

A token is (position, content, copy): a one-hot position, the token's content, and room for the content of the next token;
`LinearSelfAttention(embedding="positioned")` makes these tokens of a prompt, with c = d + k.
One layer of attention that finds the successor by its position fills the copy and erases the position; the tokens are
then those of a merged prompt, (x_j | y_j), with label tokens (y_j | x_{j+1}) between them.

Layers here do not divide their sums: `LinearSelfAttention(normaliser="none")`. The query token has to be in the sum of
the copying layer, where it is the successor of the last label.

Source: von Oswald et al., arXiv 2212.07677, Proposition 3.
"""

from __future__ import annotations

import numpy as np

from icl_lab.models.weights import LSAWeights


def copy_successor(content_dim: int, token_count: int, score: float = 1.0) -> LSAWeights:
    r"""The layer that copies the next token's content and erases the position, of every token but the last.

    W_Q p_j = p_{j+1} and W_K p = p select the successor; its value is its content, for the copy, and -p_j.

    Args:
      content_dim: c.
      token_count: T.
      score: of the successor, all others having 0. Linear attention copies exactly with 1, softmax attention only in the
        limit of large ones.

    Returns:
      (D, D) matrices of one head, D = T + 2c.
    """
    content, copy = _blocks(content_dim, token_count)
    w_pv, w_kq = np.zeros((2, copy.stop, copy.stop))
    w_kq[:token_count, :token_count] = score * np.eye(token_count, k=-1)
    w_pv[:token_count, :token_count] = -np.eye(token_count, k=1)
    w_pv[copy, content] = np.eye(content_dim)
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)


def step_on_copies(
    content_dim: int, token_count: int, dim: int, label_dim: int, context_length: int, step_size: float
) -> LSAWeights:
    """The gradient step from zero on merged tokens, into the last slots of the copy: + the prediction at the query token.

    Args:
      content_dim: c.
      token_count: T.
      dim: d, the inputs are the first slots of a content.
      label_dim: k, a label is the last slots of a content.
      context_length: N, number of examples.
      step_size: eta, multiplies the mean gradient.

    Returns:
      (D, D) matrices of one head, D = T + 2c.
    """
    content, copy = _blocks(content_dim, token_count)
    w_pv, w_kq = np.zeros((2, copy.stop, copy.stop))
    inputs, labels = slice(content.start, content.start + dim), slice(copy.stop - label_dim, copy.stop)
    w_kq[inputs, inputs] = np.eye(dim)
    w_pv[labels, labels] = step_size / context_length * np.eye(label_dim)
    return LSAWeights(w_pv=w_pv, w_kq=w_kq)


def _blocks(content_dim: int, token_count: int) -> tuple[slice, slice]:
    """Where the content and the copy are."""
    middle = token_count + content_dim
    return slice(token_count, middle), slice(middle, middle + content_dim)
