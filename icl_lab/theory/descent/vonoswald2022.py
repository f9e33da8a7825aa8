r"""Von Oswald et al. 2022 (arXiv 2212.07677): one step of gradient descent inside one layer, and its best step size.

Conventions: gradient descent on (1/2N) sum_i |W x_i - y_i|^2, so that the step size eta multiplies the *mean* over the context
(their line search prints eta / N). Losses here are *half* mean squared errors (1/2) E(yhat - w.x_q)^2, as in their code.
Inputs have independent symmetric coordinates of variance sig2 and kurtosis kap = E x^4 / sig2^2 (3 Gaussian, 9/5 uniform).
Their text says inputs are uniform on (-1, 1); their published numbers belong to (-1/2, 1/2), that is sig2 = 1/12.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from icl_lab.core.typing import Array


def gradient_step(
    initial: Float[Array, "k d"], inputs: Float[Array, "N d"], labels: Float[Array, "N k"], step_size: float
) -> Float[Array, "k d"]:
    r"""The weights W_0 + Delta W after one explicit step, Delta W = -(eta/N) sum_i (W_0 x_i - y_i) x_i^T.

    Args:
      initial: (k, d), W_0; k outputs.
      inputs: (N, d), x_i in rows.
      labels: (N, k), y_i in rows; need not be realisable by any W.
      step_size: eta of the mean gradient.

    Returns:
      (k, d).

    Source: von Oswald et al. (arXiv 2212.07677), the step that Proposition 1 implements.
    """
    update = np.zeros_like(initial)
    for x, y in zip(inputs, labels, strict=True):
        update = update - step_size / len(inputs) * np.outer(initial @ x - y, x)
    return initial + update


def descent_iterates(
    initial: Float[Array, "k d"], inputs: Float[Array, "N d"], labels: Float[Array, "N k"], step_sizes: Float[Array, "K"]
) -> Float[Array, "K+1 k d"]:
    """The weights W_0, .., W_K of K explicit steps of gradient descent, each a `gradient_step`.

    Args:
      initial: (k, d), W_0.
      inputs, labels: (N, d) and (N, k), examples in rows.
      step_sizes: (K,), eta of each step, for the mean gradient.

    Returns:
      (K+1, k, d).

    Source: von Oswald et al. (arXiv 2212.07677), K layers.
    """
    iterates = [initial]
    for eta in step_sizes:
        iterates.append(gradient_step(iterates[-1], inputs, labels, float(eta)))
    return np.stack(iterates)


def transformed_loss(weights: Float[Array, "k d"], inputs: Float[Array, "N d"], labels: Float[Array, "N k"]) -> float:
    r"""The summed squared error sum_i |W x_i - y_i|^2, which one step of W or the opposite change of the labels lowers alike.

    .. math:: \sum_i |(W + \Delta W) x_i - y_i|^2 = \sum_i |W x_i - (y_i - \Delta W x_i)|^2

    Args:
      weights: (k, d), W + dW.
      inputs, labels: (N, d) and (N, k), examples in rows.

    Source: von Oswald et al. (arXiv 2212.07677), the data transformation of section 2.
    """
    return float(sum(np.sum((weights @ x - y) ** 2) for x, y in zip(inputs, labels, strict=True)))


def attention_layer(tokens: Float[Array, "T D"], w_pv: Float[Array, "D D"], w_kq: Float[Array, "D D"]) -> Float[Array, "T D"]:
    r"""One layer of linear attention to the context, :math:`e_j + \sum_{i<T} (e_i^\top W_{KQ} e_j)\, W_{PV} e_i`, term by term.

    Args:
      tokens: (T, D), the query token last.
      w_pv: (D, D), W_PV = P W_V.
      w_kq: (D, D), W_KQ = W_K^T W_Q.

    Source: von Oswald et al. (arXiv 2212.07677), self-attention without its softmax.
    """
    updates = [sum((e @ w_kq @ one) * (w_pv @ e) for e in tokens[:-1]) for one in tokens]
    return tokens + np.stack(updates)


def attended_query_slots(
    initial: Float[Array, "k d"],
    inputs: Float[Array, "N d"],
    labels: Float[Array, "N k"],
    query: Float[Array, "d"],
    step_size: float,
    layers: int,
) -> Float[Array, "N+1 k"]:
    r"""The label slots after some layers when the query token is attended to like an example, its label slot r_q = -W_0 x_q.

    .. math:: r_j \leftarrow r_j + \tfrac{\eta}{N} \sum_{i \le N+1} (W_0 x_i - r_i)\, x_i^\top x_j

    Args:
      initial: (k, d), W_0.
      inputs, labels: (N, d) and (N, k), examples in rows.
      query: (d,).
      step_size: eta; the layer still divides by N.
      layers: number of layers.

    Returns:
      (N+1, k), the query's last; minus that one is the answer.

    Source: the layer of von Oswald et al. (arXiv 2212.07677) with the sum over all tokens, for the lab.
    """
    points = np.vstack([inputs, query[None]])
    slots = np.vstack([labels, -(initial @ query)[None]])
    for _ in range(layers):
        slots = slots + step_size / len(inputs) * (points @ points.T) @ (points @ initial.T - slots)
    return slots


def attended_query_shift(
    initial: Float[Array, "k d"], inputs: Float[Array, "M d"], query: Float[Array, "d"], step_size: float, context_length: int
) -> Float[Array, "M k"]:
    r"""What attending to the query token adds to every label slot in the first layer, (eta/N) (x_q . x_j) 2 W_0 x_q.

    Args:
      initial: (k, d), W_0.
      inputs: (M, d), the tokens' inputs x_j in rows, the query's included if wanted.
      query: (d,).
      step_size: eta.
      context_length: N.

    Returns:
      (M, k).

    Source: derived for the lab: the value of the query token is W_0 x_q - (-W_0 x_q).
    """
    return step_size / context_length * np.outer(inputs @ query, 2 * initial @ query)


def softmax_expansion(scores: Float[Array, "N"]) -> Float[Array, "4 N"]:
    r"""The coefficients of softmax(e s) in e, to third order: with c = s - mean(s) and central moments m2 and m3,

    .. math:: \mathrm{softmax}(e s)_i = \tfrac1N \left[1 + e c_i + e^2 \tfrac{c_i^2 - m_2}{2}
              + e^3 \left(\tfrac{c_i^3}{6} - \tfrac{m_2 c_i}{2} - \tfrac{m_3}{6}\right)\right] + O(e^4)

    Args:
      scores: (N,), s.

    Returns:
      (4, N), orders 0 to 3.

    Source: behind the two softmax heads of von Oswald et al. (arXiv 2212.07677), worked out for the lab.
    """
    c = scores - np.mean(scores)
    second, third = np.mean(c**2), np.mean(c**3)
    orders = [np.ones_like(c), c, (c**2 - second) / 2, c**3 / 6 - second * c / 2 - third / 6]
    return np.stack(orders) / len(c)


def one_step_loss(
    step_size: float,
    dim: int,
    context_length: int,
    variance: float,
    kurtosis: float,
    noise_variance: float = 0.0,
    task_variance: float = 1.0,
) -> float:
    r"""Half excess risk of one gradient step from zero.

    .. math:: \tfrac12 \sigma^2 d \left[\omega^2\left(1 - 2\eta\sigma^2
              + \eta^2\sigma^4\,\tfrac{N+d+\kappa-2}{N}\right) + \tfrac{\eta^2\sigma^2\tau^2}{N}\right]

    Args:
      step_size: eta of the mean gradient.
      dim: d.
      context_length: N >= 1.
      variance: sig2 of one input coordinate.
      kurtosis: kap = E x^4 / sig2^2 >= 1 of one input coordinate.
      noise_variance: of the context labels.
      task_variance: of one coordinate of w.

    Returns:
      (1/2) E(yhat - w.x_q)^2; half the noise variance more against a noisy query label.

    Source: the exact expectation behind the line search of von Oswald et al. (arXiv 2212.07677), derived for the lab.
    """
    second = (context_length + dim + kurtosis - 2) / context_length
    signal = task_variance * (1 - 2 * step_size * variance + step_size**2 * variance**2 * second)
    return variance * dim / 2 * (signal + step_size**2 * variance * noise_variance / context_length)


def optimal_step_size(
    dim: int,
    context_length: int,
    variance: float,
    kurtosis: float,
    noise_variance: float = 0.0,
    task_variance: float = 1.0,
) -> float:
    r"""The step size that minimises `one_step_loss`.

    .. math:: \eta^* = N / \left(\sigma^2 \left(N + d + \kappa - 2 + \tau^2 / (\omega^2\sigma^2)\right)\right)

    Args:
      dim: d.
      context_length: N >= 1.
      variance: sig2 of one input coordinate.
      kurtosis: kap = E x^4 / sig2^2 >= 1 of one input coordinate.
      noise_variance: of the context labels.
      task_variance: of one coordinate of w.

    Source: the line search of von Oswald et al. (arXiv 2212.07677), solved for the lab.
    """
    noise = noise_variance / (task_variance * variance)
    return context_length / (variance * (context_length + dim + kurtosis - 2 + noise))


def mean_square_step(dim: int, context_length: int, kurtosis: float) -> float:
    r"""E|dW|^2 of the best step from zero, the mean squared sensitivity of its predictions to the query.

    .. math:: E|\Delta W|^2 = \eta^{*2} E|S w|^2 = \frac{d N}{N + d + \kappa - 2}

    The variance of the inputs drops out; the mean squared prediction is this times it.

    Args:
      dim: d.
      context_length: N.
      kurtosis: kap = E x^4 / sig2^2 of an input coordinate.

    Source: behind the sensitivities of von Oswald et al. (arXiv 2212.07677) before training; derived for the lab.
    """
    return dim * context_length / (context_length + dim + kurtosis - 2)


def mean_step_norms(
    inputs: Float[Array, "S N d"], queries: Float[Array, "S d"], tasks: Float[Array, "S d"], step_size: float
) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    r"""E|dW x_q| and E|dW| of one step from zero, the distances of a model that answers 0 from that step, on a sample.

    Given the context and the query dW x_q is normal in w, which leaves
    :math:`E|\Delta W x_q| = \eta \sqrt{2/\pi}\, E|S x_q|` to average.

    Args:
      inputs: (S, N, d), the inputs of S contexts.
      queries: (S, d), their queries.
      tasks: (S, d), task vectors w drawn from N(0, I).
      step_size: eta.

    Returns:
      Both means and their standard errors, (2,) each.

    Source: behind the sensitivities of von Oswald et al. (arXiv 2212.07677) before training; the norms have no closed form.
    """

    def moved(vectors: Array) -> Array:
        """|S v| for each context."""
        scores = np.einsum("sni,si->sn", inputs, vectors)
        return np.linalg.norm(np.einsum("sn,sni->si", scores, inputs), axis=1) / inputs.shape[1]

    norms = step_size * np.stack([np.sqrt(2 / np.pi) * moved(queries), moved(tasks)])
    return np.mean(norms, axis=1), np.std(norms, axis=1, ddof=1) / np.sqrt(len(inputs))


def limit_scale(value_square: float, key_square: float, dim: int, rate: float) -> float:
    r"""|beta|, the mean of the diagonal of W_KQ's input block where gradient flow ends at one step with eta/N = h.

    The flow conserves :math:`c = |p|^2 - |K|^2`, p the last row of W_PV and K the first d columns of W_KQ, and ends at
    p = (0, u), K = beta I with |u beta| = h, so that

    .. math:: \beta^2 = \frac{2 h^2}{c + \sqrt{c^2 + 4 d h^2}}

    Args:
      value_square: |p|^2 at the start.
      key_square: |K|^2 at the start.
      dim: d.
      rate: h = eta / N > 0.

    Source: the invariant of merged weights under gradient flow; derived for the lab.
    """
    difference = value_square - key_square
    root = np.hypot(difference, 2 * np.sqrt(dim) * rate)
    # The smaller root of a quadratic would cancel.
    square = (root - difference) / (2 * dim) if difference < 0 else 2 * rate**2 / (difference + root)
    return float(np.sqrt(square))


def midpoint_rate(scale: float, rate: float) -> float:
    r"""eta/N of the layer halfway between (beta, its answer unchanged) and the construction, without rescaling.

    .. math:: h_{1/2} = \tfrac{h}{4} (1 + 1/\beta)(1 + \beta)

    Negative for negative beta; h again only for beta = 1.

    Args:
      scale: beta, not zero.
      rate: h = eta / N of both ends.

    Source: von Oswald et al. (arXiv 2212.07677), interpolation of weights; derived for the lab.
    """
    return rate / 4 * (1 + 1 / scale) * (1 + scale)
