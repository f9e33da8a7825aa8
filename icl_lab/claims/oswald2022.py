"""Claims of von Oswald et al. 2022 (arXiv 2212.07677): transformers learn in context by gradient descent."""

from __future__ import annotations

import jax
import numpy as np

from icl_lab import models, prng, theory
from icl_lab.claims import check
from icl_lab.claims.check import Check
from icl_lab.claims.claim import choice, integer, number
from icl_lab.claims.registry import claim
from icl_lab.models import constructions
from icl_lab.tasks.prompt import Prompt

PAPER = "von Oswald et al. 2022, arXiv 2212.07677"
# Two orders of summation of the same few hundred products.
ROUNDING = 1e-12


@claim(
    "oswald2022.prop1",
    paper=PAPER,
    statement="There are weights with which one linear self-attention layer moves every label by one explicit step of gradient "
    "descent from any W_0, and answers the query with the stepped weights.",
    source="Proposition 1",
    parameters={
        "d": integer(4, 1, "input dimension, the paper's N_x"),
        "k": integer(3, 1, "outputs, the paper's N_y"),
        "N": integer(7, 1, "context length"),
        "eta": number(0.6, meaning="step size of the mean gradient"),
        "law": choice("gaussian", ("gaussian", "uniform"), "of the inputs, on (-1, 1)^d if uniform"),
        "seed": integer(0, 0, "of inputs, labels and W_0"),
    },
)
def one_layer_is_one_step(d, k, N, eta, law, seed) -> list[Check]:
    key = jax.random.key(seed)
    draw = jax.random.normal if law == "gaussian" else lambda *of: jax.random.uniform(*of, minval=-1.0, maxval=1.0)
    inputs = np.asarray(draw(prng.stream(key, "inputs"), (N + 1, d)))
    # Labels of no linear map, and a start that is not zero, so that no term of the step is missing.
    labels = np.asarray(jax.random.normal(prng.stream(key, "labels"), (N, k)))
    initial = np.asarray(jax.random.normal(prng.stream(key, "initial"), (k, d)))
    prompt = Prompt(inputs=inputs[:-1], labels=labels, query=inputs[-1], target=np.zeros(k))

    model = models.LinearSelfAttention(query_in_sum=False, readout_sign=-1.0)
    weights = constructions.gradient_descent(model, d, N, eta, initial=initial)
    start = model.readout_sign * initial @ prompt.query
    tokens = np.asarray(model.apply(weights, model.tokens(prompt, start)))

    stepped = theory.vonoswald2022.gradient_step(initial, prompt.inputs, labels, eta)
    return [
        check.exact("input_slots", tokens[:, :d], inputs, ROUNDING),
        check.exact("label_slots", tokens[:N, d:], labels - prompt.inputs @ (stepped - initial).T, ROUNDING),
        check.exact("prediction", model(weights, prompt, start), stepped @ prompt.query, ROUNDING),
    ]
