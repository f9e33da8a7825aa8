"""Errors that are planted in mixers, which compiled programs would not see."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _compiled_anew(request):
    """A program that was compiled before an error is planted does not know of it, nor may others keep one that does."""
    planted = "monkeypatch" in request.fixturenames
    if planted:
        jax.clear_caches()
    yield
    if planted:
        jax.clear_caches()
