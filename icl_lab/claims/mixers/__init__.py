"""Claims about token mixers: which algorithm each runs on a prompt, and what risk it reaches."""

ORDER = ("delta", "descent", "drift", "mesa", "products")
"""Modules in the order of the subject."""
