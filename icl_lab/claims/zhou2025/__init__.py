"""Claims of Zhou et al. 2025, arXiv 2510.09776."""

ORDER = ("gap", "training", "noise", "depth", "rollout", "published")
"""Modules in the order of the source."""
