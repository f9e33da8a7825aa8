"""Prompts that ask for what was shown."""
