"""Claims of Zhou et al. 2025 (arXiv 2510.09776): several layers, softmax heads, and the published settings."""
