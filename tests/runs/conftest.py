"""What the tests of runs share."""

import subprocess
import sys

import pytest

from icl_lab.runs import liveness


@pytest.fixture
def leave_over():
    """A function: the folder of a run -> the temporary folder that a killed process of this machine left beside it."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def leave(final):
        _, at, rest = liveness.owner(final.parent).partition("-")
        partial = final.with_name(f".partial-{final.name}-{dead.pid}{at}{rest}")
        partial.mkdir()
        return partial

    return leave
