"""Closed forms for autoregressive series."""
