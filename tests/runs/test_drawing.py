"""The thread that draws the figures of a run: it begins after training, and leaves nothing behind of a run that failed."""

import threading
from unittest.mock import Mock

import pytest

from icl_lab.report import run_figures
from icl_lab.runs.drawing import drawing
from icl_lab.runs.simulate import Prepared, Simulation
from icl_lab.training import TrainingResult

TASK = Mock(context_length=3)
TRAINING = Mock(spec=TrainingResult)
PREPARED = Mock(spec=Prepared, task=TASK, model=None, optimum=None)
RUN = Mock(spec=Simulation, task=TASK, model=None, optimum=None, training=TRAINING, metrics={"risk_curve": {}})


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, in order; each figure is a file."""
    names = []

    def draw(name):
        def into(folder, *_):
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
            names.append(name)

        return into

    monkeypatch.setattr(run_figures, "draw_training", draw("training.png"))
    monkeypatch.setattr(run_figures, "draw_risks", draw("risk_curve.png"))
    return names


def test_figures_of_training_are_drawn_before_the_run_is_evaluated(tmp_path, monkeypatch):
    begun = threading.Event()
    monkeypatch.setattr(run_figures, "draw_training", lambda *_: begun.set())
    monkeypatch.setattr(run_figures, "draw_risks", lambda *_: None)
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        assert begun.wait(timeout=60)
        assert figures.finish(RUN) is None


@pytest.mark.parametrize("early", [True, False])
def test_every_figure_is_drawn_once(tmp_path, drawn, early):
    with drawing(tmp_path / "figures", True) as figures:
        if early:
            figures.trained(PREPARED, TRAINING)
        assert figures.finish(RUN) is None
    assert drawn == ["training.png", "risk_curve.png"]


def test_nothing_is_drawn_where_none_is_wanted(tmp_path, drawn):
    with drawing(tmp_path / "figures", False) as figures:
        figures.trained(PREPARED, TRAINING)
        assert figures.finish(RUN) is None
    assert drawn == []
    assert not (tmp_path / "figures").exists()


def test_a_run_that_fails_in_its_evaluation_leaves_no_figures(tmp_path, drawn):
    with pytest.raises(ZeroDivisionError), drawing(tmp_path / "figures", True) as figures:  # noqa: PT012
        figures.trained(PREPARED, TRAINING)
        raise ZeroDivisionError
    assert not (tmp_path / "figures").exists()


def test_a_figure_that_cannot_be_drawn_is_said_and_leaves_no_others(tmp_path, drawn, monkeypatch, capsys):
    def fail(*_):
        raise ModuleNotFoundError("no such backend")

    monkeypatch.setattr(run_figures, "draw_risks", fail)
    with drawing(tmp_path / "figures", True) as figures:
        figures.trained(PREPARED, TRAINING)
        assert "no such backend" in figures.finish(RUN)
    assert "kept without its figures" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
