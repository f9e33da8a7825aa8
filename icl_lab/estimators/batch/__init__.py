"""Algorithms that see all examples at once: descent on their mean loss, least squares, ridge."""
