"""Claims of Zhang, Frei, Bartlett 2023, arXiv 2306.09927."""

ORDER = ("limit", "loss", "flow", "risk", "shift", "random", "residual", "fig1")
"""Modules in the order of the source."""
