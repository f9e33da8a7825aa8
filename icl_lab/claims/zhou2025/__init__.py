"""Claims of Zhou et al. 2025, arXiv 2510.09776."""

ORDER = ("gap", "bound", "training", "noise", "depth", "softmax", "rollout", "published")
"""Modules in the order of the source."""
