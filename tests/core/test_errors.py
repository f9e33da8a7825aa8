"""The user's mistake behind an exception of the system or of the device."""

import errno

import pytest

from icl_lab.core.errors import InvalidValueError, MemoryBudgetError, in_words, mistake_in

DEVICE = "RESOURCE_EXHAUSTED: Error dispatching computation: Out of memory allocating 36000000964 bytes."


@pytest.mark.parametrize("error", [RuntimeError(DEVICE), MemoryError("Unable to allocate 74.5 GiB for an array")])
def test_memory_that_runs_out_is_a_sentence_with_the_size(error):
    assert isinstance(mistake_in(error), MemoryBudgetError)
    assert "36.0 GB" in in_words(error) or "74.5 GiB" in in_words(error)
    assert "Choose a" in in_words(error)


def test_a_mistake_keeps_its_own_sentence():
    mistake = MemoryBudgetError("a prompt holds too many numbers.")
    assert mistake_in(mistake) is mistake
    assert in_words(mistake) == "a prompt holds too many numbers."


@pytest.mark.parametrize(("number", "mistaken"), [(errno.EISDIR, True), (errno.ENOSPC, False), (errno.EIO, False)])
def test_a_place_is_the_users_mistake_and_a_full_disk_is_not(number, mistaken):
    error = OSError(number, "words of the system", "/some/place")
    assert isinstance(mistake_in(error), InvalidValueError) is mistaken
    assert "'/some/place'" in in_words(error)


def test_any_other_exception_keeps_its_kind():
    assert mistake_in(error := KeyError("x")) is error
    assert in_words(error) == "KeyError: 'x'"
