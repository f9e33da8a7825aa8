"""What the tests of runs share."""

import socket
import subprocess
import sys

import pytest


@pytest.fixture
def leave_over():
    """A function: the folder of a run -> the temporary folder that a killed process of this machine left beside it."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def leave(final):
        partial = final.with_name(f".partial-{final.name}-{dead.pid}-00000000@{socket.gethostname()}")
        partial.mkdir()
        return partial

    return leave
