"""Self-attention as the papers write it, token by token in plain numpy, and prompts to try it on."""

import numpy as np

from icl_lab.tasks.prompt import Prompt


def random_prompt(rng, context_length, dim, label_dim, dtype=np.float64):
    def draw(*shape):
        real = rng.normal(size=shape)
        return (real + 1j * rng.normal(size=shape) if np.issubdtype(dtype, np.complexfloating) else real).astype(dtype)

    return Prompt(draw(context_length, dim), draw(context_length, label_dim), draw(dim), draw(label_dim))


def merged_tokens(prompt, query_label=None):
    """Rows (x_i, y_i), last row (x_q, query_label or 0)."""
    last = np.zeros(prompt.labels.shape[1]) if query_label is None else query_label
    return np.vstack([np.hstack([prompt.inputs, prompt.labels]), np.concatenate([prompt.query, last])])


def attended_to(position, count, query_in_sum, causal):
    """The 0-based tokens that the token at `position` attends to."""
    if causal:
        return range(position + 1) if query_in_sum else range(position)
    return range(count) if query_in_sum else range(count - 1)


def reference_layer(model, heads, tokens, coefficients):
    """tokens + update; `coefficients(scores, position)` makes weights of the sum from the attended tokens' scores."""
    updated = tokens.astype(np.result_type(tokens, *(matrix for head in heads for matrix in head)))
    for j in range(len(tokens)):
        attended = list(attended_to(j, len(tokens), model.query_in_sum, model.causal))
        for w_pv, w_kq in heads:
            scores = np.array([tokens[i].conj() @ w_kq @ tokens[j] for i in attended])
            for i, coefficient in zip(attended, coefficients(scores, j), strict=True):
                updated[j] = updated[j] + coefficient * (w_pv @ tokens[i])
    return updated


def linear_reference(model, layers, tokens):
    """All tokens after linear attention; `layers` is a list of lists of heads (w_pv, w_kq)."""

    def coefficients(scores, position):
        before = position if model.causal else len(tokens) - 1
        return scores / (max(before, 1) if model.normaliser == "context_length" else 1)

    for heads in layers:
        tokens = reference_layer(model, heads, tokens, coefficients)
    return tokens


def softmax_reference(model, layers, tokens):
    """All tokens after softmax attention."""

    def coefficients(scores, position):
        exponentials = np.exp(model.inverse_temperature * scores)
        return exponentials / exponentials.sum()

    for heads in layers:
        tokens = reference_layer(model, heads, tokens, coefficients)
    return tokens


def subjaxprs(jaxpr):
    """A jaxpr and every jaxpr inside its equations."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from subjaxprs(inner)


def shapes_in(jaxpr):
    """Shapes of all arrays that a closed jaxpr computes, at any depth."""
    return {
        tuple(variable.aval.shape)
        for inner in subjaxprs(jaxpr.jaxpr)
        for equation in inner.eqns
        for variable in equation.outvars
        if hasattr(variable.aval, "shape")
    }
