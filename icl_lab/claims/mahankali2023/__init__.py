"""Claims of Mahankali, Hashimoto, Ma 2023, arXiv 2307.03576."""

ORDER = ("linear", "proof", "gauge", "nonlinear")
"""Modules in the order of the source."""
