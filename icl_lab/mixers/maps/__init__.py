"""Mixers that weigh every token they see."""
