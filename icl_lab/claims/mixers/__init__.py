"""Claims about token mixers: which algorithm each runs on a prompt, and what risk it reaches."""

ORDER = ("ground", "linear", "retention", "gated", "vectors", "delta", "descent", "drift", "mesa", "products")
"""Modules from the plainest mixer on."""
