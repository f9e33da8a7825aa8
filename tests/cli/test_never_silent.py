"""No command is silent for more than ten seconds: with stderr a pipe, and on a terminal.

The command is `verify` of one claim that sleeps, compiles for long, and then computes for long without a sign of life.
"""

import contextlib
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parent.parent
PROGRAM = """
import sys, time
from icl_lab import cli
from icl_lab.core import progress
progress.INTERVAL, progress.PATIENCE = {interval}, {patience}
from icl_lab.claims import check, registry

registry.modules = tuple

from icl_lab.claims.claim import Source
from icl_lab.claims.setting import Setting

@registry.claim("toy.slow", Setting, Source("toy", "-"))
def run(setting):
    "A toy.\\n\\nIt takes its time."
    import jax, jax.numpy as jnp
    def long_to_compile(x):
        for i in range({size}):
            x = jnp.sin(x + i) @ jnp.cos(x * i)
        return x
    def nap(x):
        time.sleep({nap})
        return x
    jax.jit(long_to_compile)(jnp.eye(3)).block_until_ready()
    jax.jit(lambda x: jax.pure_callback(nap, x, x))(jnp.zeros(())).block_until_ready()
    {more}
    return [check.exact("one", 1.0, 1.0, 1e-14)]

sys.exit(cli.main(["verify", "toy.slow", "--json", "-"]))
"""
FAST = {"interval": 0.3, "patience": 0.2, "size": 40, "nap": 1.5, "more": "pass"}


def command(**settings):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment.pop("NO_COLOR", None)
    return [sys.executable, "-c", PROGRAM.format(**FAST | settings)], environment | {"TERM": "xterm", "COLUMNS": "100"}


def lines_of(arguments, environment, cwd):
    """Exit status, stdout, and (seconds, line) of stderr."""
    started, lines = time.monotonic(), []
    with subprocess.Popen(
        arguments, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            lines.append((time.monotonic() - started, line.rstrip("\n")))
        return process.wait(60), process.stdout.read(), lines, time.monotonic() - started


def on_terminal(arguments, environment, cwd):
    """Exit status and all that a terminal received."""
    parent, child = pty.openpty()
    process = subprocess.Popen(arguments, env=environment, cwd=cwd, stdin=child, stdout=child, stderr=child)
    os.close(child)
    received = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        received += piece
    os.close(parent)
    return process.wait(60), received.decode()


def test_plain_lines_name_the_claim_and_stdout_stays_clean(tmp_path):
    status, stdout, lines, _ = lines_of(*command(), tmp_path)
    assert status == 0, lines
    assert stdout.startswith("[\n")
    assert len(lines) > 3
    assert all(line.startswith("icl-lab: ") for _, line in lines), lines
    assert any(re.fullmatch(r"icl-lab: claims, \d+ s; toy.slow, \d+ s", line) for _, line in lines), lines


@pytest.mark.slow
def test_no_gap_is_longer_than_ten_seconds_from_the_start_on(tmp_path):
    status, _, lines, end = lines_of(*command(interval=6.0, size=1500, nap=21.0), tmp_path)
    assert status == 0, lines
    times = [0.0, *(seconds for seconds, _ in lines), end]
    gaps = np.diff(times)
    assert np.max(gaps) <= 10.0, lines
    assert np.min(gaps[1:-1]) >= 5.0, lines
    assert any("; compiling, " in line for _, line in lines), lines


def test_the_line_on_a_terminal_makes_room_for_other_text_and_is_gone_at_the_end(tmp_path):
    more = "print('a word', file=sys.stderr); time.sleep(1.0); print('another', file=sys.stdout); time.sleep(1.0)"
    status, received = on_terminal(*command(more=more), tmp_path)
    assert status == 0, received
    drawn = re.findall(r"\r\x1b\[2K([^\r\n]*)", received)
    assert any("toy.slow, " in line for line in drawn), received
    # A line of more than the width would wrap and stay.
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in drawn) < 100
    shown = [
        re.sub(r"\x1b\[[\d;]*[mK]", "", line.rsplit("\r\x1b[2K", 1)[-1]) for line in received.replace("\r\n", "\n").split("\n")
    ]
    # What a reader sees in the end is the text alone, each on a line of its own.
    assert "a word" in shown
    assert "another" in shown
    assert "[" in shown
    assert not any("toy.slow, " in line for line in shown), shown


def test_a_dumb_terminal_gets_plain_lines(tmp_path):
    arguments, environment = command()
    status, received = on_terminal(arguments, environment | {"TERM": "dumb"}, tmp_path)
    assert status == 0, received
    assert "icl-lab: claims, " in received
    assert "\x1b" not in received


def test_a_closed_stderr_changes_nothing(tmp_path):
    arguments, environment = command()
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=write, timeout=120)
    os.close(write)
    assert done.returncode == 0
    assert done.stdout.startswith(b"[\n")


def test_a_reader_that_does_not_read_delays_nothing(tmp_path):
    """The pipe of stderr is full from the start: the display waits for its reader, the command does not."""
    arguments, environment = command()
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 1024)
    os.set_blocking(write, True)
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=write, timeout=120)
    os.close(read)
    os.close(write)
    assert done.returncode == 0
    assert done.stdout.startswith(b"[\n")
