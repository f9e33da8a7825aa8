"""Phases and the display that says them, in this process; `tests/cli/test_never_silent.py` has the command line."""

import io
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_lab import models, objectives, tasks, training
from icl_lab.core import progress


class Heard:
    """What standard error has received so far."""

    def __init__(self, capsys):
        self.capsys, self.text = capsys, ""

    def getvalue(self):
        self.text += self.capsys.readouterr().err
        return self.text


@pytest.fixture
def heard(monkeypatch, capsys):
    """Standard error, and displays that speak every twentieth of a second."""
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    return Heard(capsys)


def wait_for(words, stderr, seconds=20.0):
    end = time.monotonic() + seconds
    while words not in stderr.getvalue():
        assert time.monotonic() < end, stderr.getvalue()
        time.sleep(0.01)


def test_phases_are_said_from_the_whole_to_its_parts(heard):
    with progress.display("work"):
        wait_for("icl-lab: work, 0 s\n", heard)
        with progress.phase("points", 3) as points:
            points.update(1, "1 failed")
            with progress.phase("gradient flow"):
                wait_for("icl-lab: points 1 of 3, 0 s, 1 failed; gradient flow, 0 s\n", heard)
    said = heard.getvalue()
    time.sleep(0.2)
    assert heard.getvalue() == said
    assert not any(thread.name == "icl_lab progress" for thread in threading.enumerate())


def test_nobody_listens_unless_asked(heard):
    with progress.display("work", enabled=False), progress.phase("drawing"):
        time.sleep(0.15)
    assert heard.getvalue() == ""
    assert not any(thread.name == "icl_lab progress" for thread in threading.enumerate())


def test_a_display_within_another_adds_nothing(heard):
    with progress.display("outer"):
        before = threading.active_count()
        with progress.display("inner"):
            assert threading.active_count() == before
        wait_for("outer", heard)
    assert "inner" not in heard.getvalue()


def test_a_phase_left_behind_in_a_traceback_ends_with_the_phase_round_it():
    def items():
        for item in progress.each("items", range(3)):
            raise ValueError(item)

    kept = None
    try:
        with progress.phase("outer"):
            items()
    except ValueError as error:
        kept = error  # its traceback holds the generator
    assert kept is not None
    assert progress._phases == []


def test_a_decorated_function_is_a_phase_each_time(heard):
    @progress.phase("figures")
    def draw(depth):
        assert [phase.name for phase in progress._phases] == ["figures"] * (3 - depth)
        return depth and draw(depth - 1)

    draw(2)
    draw(2)
    assert progress._phases == []


def test_names_of_users_cannot_write_on_a_terminal(heard):
    with progress.display("a\nb\x1b[2J[red]"):
        wait_for("icl-lab: a?b?[2J[red], 0 s\n", heard)


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_a_stderr_that_nobody_reads_ends_the_display_and_nothing_else(error, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    monkeypatch.setattr(progress, "INTERVAL", 0.01)
    monkeypatch.setattr(sys, "stderr", Broken())
    with progress.display("work"):
        time.sleep(0.1)


def test_a_process_without_stderr_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress.display("work"), progress.phase("drawing"):
        pass


def test_compilation_is_said(heard):
    with progress.display("work"), progress.phase("evaluating"):
        assert progress._listening.is_set()
        jax.monitoring.record_scalar(progress.COMPILATION, 0.0)
        progress._compiling[threading.get_ident()] -= 75.0
        wait_for("evaluating, 0 s; compiling, 1 min 15 s\n", heard)
        jax.monitoring.record_event_duration_secs(progress.COMPILATION, 75.0)
    assert progress._compiling == {}


def test_jax_says_when_it_compiles():
    begun = []
    with progress.phase("listening"):
        pass

    def note(event, *_, **__):
        if event == progress.COMPILATION:
            begun.append(dict(progress._compiling))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        jax.jit(lambda x: jnp.sin(x) * 0.12345)(np.arange(3.0)).block_until_ready()
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    # Ours was registered before, so that it has heard of the end by now.
    assert begun
    assert progress._compiling == {}


@pytest.mark.parametrize("what", ["gradient flow", "gradient flows", "descent", "drawing moments"])
def test_training_and_drawing_show_how_far_they_are_when_asked(what, heard, key):
    """Each says so through the same display, with a user's slow loss in the middle."""
    if what == "drawing moments":
        task = tasks.LinearRegression(dim=2, context_length=4)
        objectives.SampledLoss.build(task, models.LinearSelfAttention(), key, prompts=400, groups=4, progress=True)
    elif what == "descent":
        training.descend(SlowLoss(), np.zeros(()), optax.sgd(0.1), 4, progress=True)
    elif what == "gradient flow":
        training.gradient_flow(SlowLoss(), np.zeros(()), solver="tsit5", weight_tolerance=1e-2, max_steps=64, progress=True)
    else:
        training.gradient_flows(SlowLoss(), np.zeros(2), solver="tsit5", weight_tolerance=1e-2, max_steps=64, progress=True)
    assert f"icl-lab: {what}" in heard.getvalue()


class SlowLoss(objectives.Objective):
    """A parabola whose every value takes the time of a nap."""

    task: tasks.Task = tasks.LinearRegression(dim=1, context_length=1)
    model: object = None

    def __call__(self, weights, key=None):
        @jax.custom_jvp
        def nap(x):
            return jax.pure_callback(lambda x: (time.sleep(0.01), np.zeros_like(x))[1], x, x, vmap_method="sequential")

        nap.defjvp(lambda primals, tangents: (nap(*primals), jnp.zeros_like(primals[0])))
        return jnp.sum((weights - 1.0) ** 2) + nap(jnp.sum(weights))

    def risk(self, weights):
        return 0.0

    def standard_error(self, weights):
        return 0.0
