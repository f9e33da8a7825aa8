"""Claims about the time course of gradient flow from structured starts."""
