"""Tokens that copy their successor: what the copies hold, what a softmax does to them, and what they do to the next layer.

A context x_1, y_1, x_2, y_2, .., x_N, y_N, x_q of separate tokens becomes one of merged tokens when every token fetches the
content of the next one (von Oswald et al., arXiv 2212.07677, Proposition 3).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array


def merged_successors(contents: Float[Array, "T c"]) -> Float[Array, "T D"]:
    """Every token's own content followed by that of the next token, D = 2c; the last token has no next and gets zeros.

    Args:
      contents: (T, c).

    Source: von Oswald et al. (arXiv 2212.07677), Proposition 3.
    """
    return np.hstack([contents, np.vstack([contents[1:], np.zeros((1, contents.shape[1]))])])


def successor_weight(score: float, keys: int) -> float:
    r"""What a softmax gives the one key of score b when all others have score 0, :math:`e^b / (e^b + T - 1)`.

    Args:
      score: b.
      keys: T >= 1.

    Source: a correction to von Oswald et al. (arXiv 2212.07677), Proposition 3, who say that the one-hot score stays.
    """
    return 1 / (1 + (keys - 1) * np.exp(-score))


def contamination(inputs: Float[Array, "N d"], labels: Float[Array, "N"], query: Float[Array, "d"], step_size: float) -> float:
    r"""What merged label tokens (0, .., 0, y_j | x_{j+1}) add to a step's prediction when labels share the last input slot.

    .. math:: \tfrac{\eta}{N}\, x_{q,d} \sum_j y_j\, x_{j+1,d}, \qquad x_{N+1} = x_q

    Args:
      inputs, labels: (N, d) and (N,), examples in rows.
      query: (d,).
      step_size: eta.

    Source: a correction to von Oswald et al. (arXiv 2212.07677), Proposition 3, worked out for the lab.
    """
    following = np.append(inputs[1:, -1], query[-1])
    return float(step_size / len(inputs) * query[-1] * (labels @ following))
