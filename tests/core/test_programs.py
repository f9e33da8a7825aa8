"""Compiled programs are let go of before a process has too many, and only where that does no harm."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_lab.core import precision, programs


@pytest.fixture
def outermost(monkeypatch):
    """Scopes of a test are the outermost ones, the size is looked at whenever one ends, and the counting begins anew."""
    monkeypatch.setattr(programs, "_open", 0)
    monkeypatch.setattr(programs, "PAUSE", 0.0)
    monkeypatch.setattr(programs, "_looked", 0.0)
    monkeypatch.setattr(programs, "_base", programs.Size(0, 0))
    return monkeypatch


@pytest.fixture
def ended(outermost):
    """A function: the sizes of a process, (maps, GiB), at the ends of scopes -> at which of them programs were let go of."""

    def at(*sizes):
        now = []
        outermost.setattr(programs, "size", lambda: programs.Size(now[-1][0], int(now[-1][1] * 2**30)))
        when = []
        outermost.setattr(programs, "let_go", lambda: when.append(len(now) - 1))
        for size in sizes:
            now.append(size)
            with precision.float64():
                pass
        return when

    return at


@pytest.mark.skipif(programs.size().maps == 0, reason="the system does not tell how many maps a process has")
def test_many_compilations_leave_few_maps_and_the_same_numbers(outermost):
    programs.let_go()
    outermost.setattr(programs, "_base", programs.size())
    outermost.setattr(programs, "GROWTH", programs.Size(30, 2**30))
    kept, maps, answers = [], [], []
    for i in range(30):
        with precision.float64():
            kept.append(jax.jit(lambda x, i=i: x * (i + 1.5) @ x))
            answers.append(float(kept[-1](jnp.arange(3.0))))
        maps.append(programs.size().maps)
    assert max(maps) - maps[0] < 60, "each has three"
    assert answers == pytest.approx(5 * (np.arange(30) + 1.5), rel=1e-15)
    with precision.float64():
        assert [float(function(jnp.arange(3.0))) for function in kept[:3]] == answers[:3]


def test_a_process_that_grows_in_maps_or_in_memory_lets_go(ended):
    assert ended((500, 0.3), (5_900, 0.3), (6_100, 0.3)) == [2]
    assert ended((500, 0.3), (700, 0.9), (700, 1.1)) == [2]


def test_what_cannot_be_let_go_of_is_not_tried_again_and_again(ended):
    # A large data set, then more of it, then none, and programs in its place.
    assert ended((900, 10.0), (900, 10.1), (900, 10.7), (900, 10.9), (900, 0.4), (900, 1.0), (900, 1.2)) == [0, 3, 6]


def test_nothing_is_let_go_of_while_work_goes_on_in_a_thread_or_a_trace(ended):
    entered, leave = threading.Event(), threading.Event()

    def work():
        with precision.float64():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(60)
    assert ended((9_000, 0.1)) == []
    leave.set()
    thread.join()  # its scope was the last

    traced = []

    @jax.jit
    def function(x):
        traced.append(ended((18_000, 0.1)))
        return x

    function(1.0)
    assert traced == [[]]
    assert ended((18_000, 0.1)) == [0]
