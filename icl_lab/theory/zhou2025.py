"""Closed forms of Zhou et al. 2025 (arXiv 2510.09776) for one layer of linear attention on AR(p) series."""
