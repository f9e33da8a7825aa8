"""Risks of least squares, ridge and Bayes on Gaussian linear regression."""
