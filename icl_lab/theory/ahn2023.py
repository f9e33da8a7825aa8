"""Closed forms of Ahn et al. 2023 (arXiv 2306.00297): linear attention layers as preconditioned gradient descent."""
