"""Prompts of random numbers for tests, from numpy."""

import numpy as np

from icl_lab.tasks.prompt import Prompt


def normals(rng, complex_data=False):
    """A function that draws standard normals of a shape, as real and imaginary parts if data are complex."""

    def draw(*shape):
        return rng.normal(size=shape) + (1j * rng.normal(size=shape) if complex_data else 0.0)

    return draw


def random_prompt(seed, n=7, d=3, k=2, complex_data=False):
    """A prompt without structure: inputs (n, d), labels (n, k), a query (d,) and a target (k,), all standard normal."""
    draw = normals(np.random.default_rng(seed), complex_data)
    return Prompt(draw(n, d), draw(n, k), draw(d), draw(k))
