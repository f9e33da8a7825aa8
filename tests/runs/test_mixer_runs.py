"""Runs of layers round token mixers on the tasks that tell mixers apart: trained, compared at every length, identified."""

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from icl_lab import mixers
from icl_lab.config import paths
from icl_lab.config.compose import register
from icl_lab.runs import execute, identify, records

QUICK = ("analysis.prompts=400", "analysis.figures=false", "task.context_length=4")
TRAINING = (
    "objective=streamed",
    "objective.batch=256",
    "trainer.steps=60",
    "trainer.learning_rate=0.03",
    "trainer.init_scale=0.4",
)
SIZES = {"drift": "dim=2", "affine": "dim=2", "recall": "dim=4", "markov": "states=2"}


@pytest.fixture
def run(tmp_path):
    """A function: task, mixer and lengths -> the folder of a run in which a layer round that mixer was trained."""

    def run(task, mixer, lengths):
        register()
        chosen = (
            "model=mixer",
            f"model.mixer={mixer}",
            f"task={task}",
            f"task.{SIZES[task]}",
            f"analysis.context_lengths={lengths}",
        )
        with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
            config = compose("run", overrides=[f"run_root={tmp_path}", *QUICK, *TRAINING, *chosen])
        outcome = execute.execute(config, Console(quiet=True))
        assert outcome.status == "done"
        return outcome.folder

    return run


def trained_and_compared(folder, lengths):
    """Whether training has lowered the loss, which is that of the same prompts at every step; the comparison is whole."""
    metrics = records.read_metrics(folder)
    curve, rows = metrics["risk_curve"], metrics["comparison"]
    assert curve["context_lengths"] == lengths
    assert {"model", "gradient_descent", "ols", "ridge", "zero"} <= rows.keys()
    for name, row in rows.items():
        assert np.isfinite(row["risk"])
        assert np.all(np.isfinite(curve["risk"][name]))
    losses = records.read_arrays(folder / "trajectory.npz")["losses"]
    return losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("task", ["drift", "affine", "recall", pytest.param("markov", marks=pytest.mark.slow)])
def test_a_mixer_is_trained_and_compared_on_every_task(run, task):
    assert trained_and_compared(run(task, "kda", []), [4])


@pytest.mark.slow
@pytest.mark.parametrize("mixer", mixers.MIXERS)
def test_every_mixer_is_trained_compared_and_identified_on_a_drifting_task(run, mixer):
    folder = run("drift", mixer, [2])
    assert trained_and_compared(folder, [2, 4])
    found = identify.find(folder, 200, 0)
    assert found.prompts == 200
    assert all(np.isfinite(row.distance.mean) for row in found.ranked)
