"""Exact losses."""
