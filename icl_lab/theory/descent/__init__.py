"""Closed forms for layers that descend: steps, variants, moments of Gram matrices, heads."""
