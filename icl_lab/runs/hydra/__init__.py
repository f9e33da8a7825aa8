"""Runs as Hydra starts them: one, or the points of a sweep."""
