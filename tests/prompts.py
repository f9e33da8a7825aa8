"""Prompts of random numbers for tests, from numpy."""

import numpy as np

from icl_lab.tasks.prompt import Prompt


def random_prompt(seed, n=7, d=3, k=2, complex_data=False):
    """A prompt without structure: inputs (n, d), labels (n, k), a query (d,) and a target (k,), all standard normal."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_data else 0.0)

    return Prompt(draw(n, d), draw(n, k), draw(d), draw(k))
