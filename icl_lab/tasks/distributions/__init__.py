"""Distributions of inputs, of their spectra and of first states."""
