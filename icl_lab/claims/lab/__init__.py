"""Claims beyond the papers, derived here."""

ORDER = (
    "layer",
    "minima",
    "risks",
    "least_squares",
    "dynamics",
    "timescales",
    "training",
    "autoregressive",
    "random_autoregressive",
    "second_order",
    "rotations",
    "planar",
)
"""Modules in the order of the subject."""
