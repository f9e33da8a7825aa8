"""Claims of Ahn et al. 2023, arXiv 2306.00297."""

ORDER = ("one_layer", "layers")
"""Modules in the order of the source."""
