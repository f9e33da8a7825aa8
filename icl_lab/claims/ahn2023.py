"""Claims of Ahn et al. 2023 (arXiv 2306.00297)."""
