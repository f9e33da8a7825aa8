"""Stationary points of one layer's loss that are not the global minimum."""
