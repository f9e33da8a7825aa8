"""Losses in closed form, from the moments of the task."""
