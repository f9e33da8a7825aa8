"""The process that draws the figures of a run: it begins after training, and leaves nothing behind of a run that failed."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from icl_lab.report import run_figures
from icl_lab.runs import drawing as module
from icl_lab.runs import painter
from icl_lab.runs.drawing import drawing
from icl_lab.runs.simulate import Prepared, Simulation
from icl_lab.training import TrainingResult

TASK = Mock(context_length=3)
TRAINING = Mock(spec=TrainingResult)
PREPARED = Mock(spec=Prepared, task=TASK, model=None, optimum=None)
CURVE = {"context_lengths": [2, 3], "risk": {"ols": [1.0, 0.5]}, "standard_error": {"ols": [0.1, 0.1]}, "closed_form": None}
RUN = Mock(spec=Simulation, task=TASK, model=None, optimum=None, training=TRAINING, metrics={"risk_curve": CURVE})
TIMES = np.array([0.0, 1.0, 2.0])


@pytest.fixture(autouse=True)
def curves(monkeypatch):
    """Curves of a training, in place of those that a real one would show."""
    shown = run_figures.TrainingCurves("step", TIMES, 1 / (1 + TIMES), 1 / (1 + TIMES), None, None, {}, {})
    monkeypatch.setattr(module, "training_curves", lambda *_: shown)


def _written(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.png")}


def _until(condition) -> bool:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_figures_of_training_are_drawn_before_the_run_is_evaluated(tmp_path):
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        assert _until(lambda: _written(tmp_path / "figures") == {"training.png"})
        assert figures.finish(RUN) is None


@pytest.mark.parametrize("early", [True, False])
def test_every_figure_is_drawn(tmp_path, early):
    with drawing(tmp_path / "figures", True) as figures:
        if early:
            figures.trained(PREPARED, TRAINING)
        assert figures.finish(RUN) is None
    assert _written(tmp_path / "figures") == {"training.png", "risk_curve.png"}


def test_nothing_is_drawn_where_none_is_wanted(tmp_path):
    with drawing(tmp_path / "figures", False) as figures:
        figures.trained(PREPARED, TRAINING)
        assert figures.finish(RUN) is None
    assert not (tmp_path / "figures").exists()


def test_a_run_that_fails_in_its_evaluation_leaves_no_figures(tmp_path):
    with pytest.raises(ZeroDivisionError), drawing(tmp_path / "figures", True) as figures:  # noqa: PT012
        figures.trained(PREPARED, TRAINING)
        raise ZeroDivisionError
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_cannot_be_drawn_is_said_and_leaves_no_others(tmp_path, capsys):
    lacking = Mock(spec=Simulation, task=TASK, metrics={"risk_curve": {"risk": {}}})
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        assert "standard_error" in figures.finish(lacking)
    assert "kept without its figures" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
    with drawing(tmp_path / "figures", True) as figures:  # the next one is drawn
        assert figures.finish(RUN) is None


def test_curves_that_cannot_be_computed_are_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("no curves")

    monkeypatch.setattr(module, "training_curves", fail)
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        assert "no curves" in figures.finish(RUN)
    assert "kept without its figures" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_what_pickle_refuses_leaves_nothing_in_the_pipe(tmp_path):
    drawer = painter.Painter()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        drawer.begin(os.mkdir, np.ones(100_000), lambda: None)
    drawer.begin(os.mkdir, tmp_path / "c")
    assert drawer.wait() is None
    drawer.stop()


def test_a_process_that_dies_is_said(tmp_path):
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        painter.painter().begin(signal.raise_signal, signal.SIGKILL)
        assert "ended with status -9" in figures.finish(RUN)
    assert not (tmp_path / "figures").exists()


def test_a_call_that_raises_is_told_in_words_and_the_next_is_done(tmp_path):
    drawer = painter.Painter()
    drawer.begin(os.mkdir, tmp_path / "a" / "b")
    drawer.begin(os.mkdir, tmp_path / "c")
    assert "No such file" in drawer.wait()
    assert drawer.wait() is None
    assert (tmp_path / "c").is_dir()
    drawer.stop()


def test_the_process_ends_with_its_caller():
    program = (
        "import sys, time; from icl_lab.runs import painter; print(painter.painter()._process.pid, flush=True); time.sleep(600)"
    )
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    pid = int(caller.stdout.readline())
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert _until(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


def test_no_interpreter_is_said(tmp_path, monkeypatch, capsys):
    painter.stop()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        assert "nothing" in figures.finish(RUN)
    assert "kept without its figures" in capsys.readouterr().err
