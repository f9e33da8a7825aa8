"""Claims of Zheng et al. 2024, arXiv 2405.16845."""

ORDER = ("flow", "loss", "ones", "capability", "simulations")
"""Modules in the order of the source."""
