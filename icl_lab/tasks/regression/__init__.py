"""Prompts of labelled examples: y = f(x) + noise."""
