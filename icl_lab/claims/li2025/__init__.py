"""Claims of Li et al. 2025, arXiv 2504.04308."""

ORDER = ("optimum", "weightings", "limits")
"""Modules in the order of the source."""
