"""Moments of the Gram matrix W = X^T X, E tr W^k, and quadrature rules for losses that are polynomials of it."""
