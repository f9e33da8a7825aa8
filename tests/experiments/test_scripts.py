"""Every experiment runs as its docstring says and leaves figures with their numbers."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(EXPERIMENTS / script), *arguments], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("script", "figures"),
    [
        ("zhang2023.py", {"convergence", "matrices", "lengths", "shifts"}),
        ("mahankali2023.py", {"risks", "step_sizes"}),
        ("zhangsaxe2025.py", {"saddle_to_saddle"}),
    ],
)
def test_a_paper_has_its_figures(script, figures, tmp_path):
    run(script, "-o", str(tmp_path))
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_decoder_is_tested_under_every_shift_beside_the_linear_layer(tmp_path):
    small = ("steps=20", "width=8", "layers=1", "heads=2", "prompts=250", "longest=6", "context_length=5", "dim=2")
    printed = run("zhang2023_fig1.py", f"output={tmp_path}", "scales=[1,4]", *(f"decoder.{setting}" for setting in small))
    assert "random, c = 4" in printed
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [(c["trained"], c["tested"], c["scale"]) for c in curves] == [
        (trained, tested, scale)
        for trained in ("fixed", "random")
        for tested, scale in (("fixed", 1.0), ("random", 1.0), ("random", 4.0))
    ]
    assert (tmp_path / "covariate_shift.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_phases_have_their_figures(tmp_path):
    small = ("dim=2", "length=12", "sequences=500", "inits=[[0.5,1.5]]", "random_scales=[0.1]")
    run("zheng2024.py", f"output={tmp_path}", *small)
    figures = {"products", "recovery", "all_ones", "random_starts"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_series_have_their_figures(tmp_path):
    small = (
        "series_length=4000",
        "seeds=[100]",
        "scaling.orders=[3]",
        "scaling.lengths=[5,10]",
        "scaling.epochs=3",
        "depth.lengths=[10]",
        "depth.layers=[1,2]",
        "depth.steps=20",
        "rollout.length=17",
        "rollout.steps=30",
        "rollout.series=20",
        "softmax.lengths=[5,10]",
    )
    run("zhou2025.py", f"output={tmp_path}", *small)
    figures = {"rollouts", "softmax", "depth", "context_scaling"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_layers_beside_gradient_descent_have_their_figures(tmp_path):
    small = (
        "dim=3",
        "context_length=4",
        "seeds=1",
        "one_layer.steps=30",
        "one_layer.batch=64",
        "one_layer.points=2",
        "two_layers.dim=3",
        "two_layers.context_length=3",
        "two_layers.steps=20",
        "two_layers.batch=64",
        "two_layers.starts=2",
        "test_prompts=200",
        "input_scales=[1,2]",
        "task_scales=[1,2]",
        "rollout.times=4",
        "rollout.tasks=100",
        "spectra.lengths=[4]",
        "spectra.tasks=100",
        "fixed_tasks.sizes=[64]",
        "fixed_tasks.steps=20",
    )
    run("vonoswald2022.py", f"output={tmp_path}", *small)
    figures = {"one_layer", "two_layers", "scaled", "repeated", "spectra", "fixed_tasks"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_preconditioned_layers_have_their_figures(tmp_path):
    small = ("dim=2", "context_length=4", "spectrum=[1,0.5]", "layers=[1,2]", "steps=20", "batch=64", "test_prompts=400")
    run("ahn2023.py", f"output={tmp_path}", *small)
    figures = {"losses", "distances", "matrices"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == {path.stem for path in tmp_path.glob("*.csv")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_map_of_mixers_has_every_mechanism_and_names_the_known_ones(tmp_path):
    small = ("dim=2", "context_length=5", "prompts=256", "steps=2", "mechanisms=[linear,gated_deltanet,gla]")
    printed = run("mixers.py", f"output={tmp_path}", *small)
    assert "linear attention: gradient descent" in printed
    assert "gated DeltaNet: online SGD with decay" in printed
    assert {path.stem for path in tmp_path.glob("*.png")} == {"map"}
    with (tmp_path / "map.csv").open(encoding="utf-8") as file:
        rows = {row["distance to"].strip("'"): row for row in csv.DictReader(file)}
    assert float(rows["gradient descent"]["linear attention"]) < 1e-9
    assert np.isnan(float(rows["online SGD"]["linear attention"]))
    assert float(rows["online SGD with decay"]["gated DeltaNet"]) < 1e-9 < float(rows["online SGD"]["gated DeltaNet"])
    # A rate for each channel is none of these.
    assert min(float(row["GLA"]) for row in rows.values()) > 1e-3
