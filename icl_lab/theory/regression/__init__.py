"""Closed forms for in-context linear and nonlinear regression."""
