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


MIXERS = (
    "ladder.context_length=60",
    "ladder.correlations=[0.9,0.97]",
    "ladder.prompts=2000",
    "ladder.pilot=50",
    "lengths.dim=3",
    "lengths.lengths=[4,16]",
    "lengths.prompts=4000",
    "recall.dim=6",
    "recall.pairs=[3,12]",
    "recall.prompts=1000",
    "speed.mechanisms=[deltanet]",
    "speed.lengths=[64,256]",
    "speed.repeats=1",
    "map.dim=2",
    "map.context_length=5",
    "map.prompts=256",
    "map.steps=2",
    "map.mechanisms=[linear,deltanet,gated_deltanet,gla]",
)


def columns(path):
    """The numbers of a figure by column, without the empty ends of short ones."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows if row[name]] for name in rows[0]}


def numbers(path):
    return {name: np.array(column, dtype=float) for name, column in columns(path).items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_risks_of_mixers_are_their_closed_forms(tmp_path):
    run("mixers.py", f"output={tmp_path}", "figures=[ladder,lengths,recall,speed]", *MIXERS)
    figures = {"ladder", "lengths", "recall", "speed"}
    assert {path.stem for path in tmp_path.glob("*.png")} == figures == {path.stem for path in tmp_path.glob("*.csv")}
    compared = 0
    for figure in ("ladder", "lengths"):
        found = numbers(tmp_path / f"{figure}.csv")
        for name in [name for name in found if f"{name} exact" in found]:
            known = np.isfinite(found[f"{name} exact"])
            gaps, errors = found[name] - found[f"{name} exact"], found[f"{name} error"]
            assert np.all(np.abs(gaps[known]) <= 4 * errors[known]), (figure, name, gaps / errors)
            assert np.all(errors < 0.08 * found[name]), (figure, name)
            compared += np.sum(known)
    assert compared == 6 * 2 + 9 * 2
    ladder = numbers(tmp_path / "ladder.csv")
    for name in ("step of the variance", "mesa"):
        assert np.all((ladder["Kalman filter"] < ladder[name]) & (ladder[name] < ladder["gated DeltaNet"])), name
    # A blurred sum, and the least squares of more pairs than dimensions.
    recall, d, n = numbers(tmp_path / "recall.csv"), 6, np.array([3, 12])
    for name, expected in (("linear attention", (n - 1) / (n - 1 + d)), ("mesa", np.maximum(0, 1 - d / n))):
        assert np.all(np.abs(recall[name] - expected) <= 5 * recall[f"{name} error"] + 1e-3), (name, recall[name])
    assert np.all(recall["softmax attention"] < 0.02)
    assert np.all(recall["HGRN (a vector)"] > 0.9)
    times = numbers(tmp_path / "speed.csv")
    assert all(np.all(times[f"DeltaNet, {form}"] > 0) for form in ("recurrent", "chunk", "parallel"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_map_of_mixers_has_every_mechanism_and_names_the_known_ones(tmp_path):
    printed = run("mixers.py", f"output={tmp_path}", "figures=[map]", *MIXERS)
    for words in (
        "linear attention: gradient descent",
        "DeltaNet: online SGD",
        "gated DeltaNet: online SGD with decay",
        "GLA: none of these",
    ):
        assert f"\n{words};" in f"\n{printed}"
    assert {path.stem for path in tmp_path.glob("*.png")} == {"map"}
    table = columns(tmp_path / "map.csv")
    families = [family.strip("'") for family in table.pop("distance to")]
    near = {name: dict(zip(families, map(float, distances), strict=True)) for name, distances in table.items()}
    assert near["linear attention"]["gradient descent"] < 1e-9
    assert np.isnan(near["linear attention"]["online SGD"])
    assert min(near["DeltaNet"], key=near["DeltaNet"].__getitem__) == "online SGD"
    assert near["DeltaNet"]["online SGD"] < 1e-9 < 1e-3 < near["DeltaNet"]["gradient descent"]
    assert near["gated DeltaNet"]["online SGD with decay"] < 1e-9 < 1e-3 < near["gated DeltaNet"]["online SGD"]
    # A rate for each channel is none of these.
    assert min(near["GLA"].values()) > 1e-3
