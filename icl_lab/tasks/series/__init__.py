"""Prompts cut from autoregressive series."""
