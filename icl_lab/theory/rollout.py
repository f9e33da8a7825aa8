"""Closed forms of rollouts, depth and softmax heads on AR(p) series (around Zhou et al. 2025, arXiv 2510.09776)."""
