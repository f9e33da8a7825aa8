"""Losses and best coefficients of one or several gradient steps, with and without curvature correction (arXiv 2212.07677)."""
