"""`icl-lab identify` on run folders: models of every shape come back as they were trained; other folders are refused."""

import json

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console

from icl_lab import cli
from icl_lab.config import paths
from icl_lab.config.compose import register
from icl_lab.models import LSAWeights
from icl_lab.runs import execute, identify, records

QUICK = ("analysis.prompts=200", "analysis.figures=false", "analysis.context_lengths=[]", "task.dim=2", "task.context_length=6")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function: overrides -> the folder of the run, made once."""
    root = tmp_path_factory.mktemp("store")

    def run(*overrides):
        register()
        with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
            config = compose("run", overrides=[f"run_root={root}", *QUICK, *overrides])
        return execute.execute(config, Console(quiet=True)).folder

    return run


def test_a_flow_run_is_named_on_the_command_line(run, capsys, tmp_path):
    anisotropic = run("task.covariance=[[2,0.5],[0.5,1]]")
    written = tmp_path / "found.json"
    assert cli.main(["identify", str(anisotropic), "--prompts", "500", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    for expected in ("preconditioned GD", "relative distance", "tell by answers", "tell by risk", "PRECONDITIONED GD:"):
        assert expected in printed
    found = json.loads(written.read_text())
    assert found["verdict"] == "preconditioned GD"
    (best,) = (entry for entry in found["families"] if entry["family"] == "preconditioned GD")
    # The limit of the flow in closed form, N = 6: the inverse of (1 + 1/N) covariance + tr(covariance)/N.
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    expected = np.linalg.inv((1 + 1 / 6) * covariance + np.trace(covariance) / 6 * np.eye(2))
    np.testing.assert_allclose(best["parameters"]["preconditioner"], expected, rtol=1e-6, atol=1e-7)
    assert best["distance"] < 1e-6

    # The same seed gives the same numbers, another seed others.
    answers = []
    for seed in ("0", "0", "1"):
        assert cli.main(["identify", str(anisotropic), "--prompts", "500", "--seed", seed, "--json", "-"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == found
    assert answers[2]["verdict"] == "preconditioned GD"
    assert answers[2]["families"][-1] != found["families"][-1]


def test_models_of_every_shape_come_back_with_their_weights(run, key):
    adam = ("trainer=adam", "trainer.steps=2", "trainer.init=gaussian", "objective=streamed", "objective.batch=8")
    for shape in (
        ("model.layers=2",),
        ("model=softmax_attention", "model.heads=2"),
        ("model=mixer", "model.mixer=kda", "model.layers=2", "model.heads=2", "model.data_dependent=true"),
        ("model.parametrisation=separate", "precision=float32"),
    ):
        folder = run(*adam, *shape)
        trained, arrays = identify.load(folder), records.read_arrays(folder / "weights.npz")
        leaves = execute.named_leaves("limit", trained.weights)
        assert leaves.keys() == {name for name in arrays if name.startswith("limit")}
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(leaf, arrays[name])
            assert leaf.dtype == arrays[name].dtype
        prompt = trained.task.sample(key)
        assert np.all(np.isfinite(trained.model(trained.weights, prompt)))
    with open("/dev/null", "w") as nowhere:
        console = Console(file=nowhere, record=True, width=120)
        identify.show(identify.find(folder, 200, 0), console)
        assert "relative distance" in console.export_text()


def test_folders_that_are_no_finished_run_are_refused(run, capsys, tmp_path):
    def says(folder, *arguments):
        assert cli.main(["identify", str(folder), *arguments]) == cli.MISUSE
        output = capsys.readouterr()
        assert output.out == ""
        return output.err

    assert "must be the folder of a finished run" in says(tmp_path / "nowhere")
    folder = run("task.covariance=[[2,0.5],[0.5,1]]")
    copy = tmp_path / "copy"
    copy.mkdir()
    records.write_json(copy / "status.json", {"status": "failed"})
    assert "did not finish (its status is 'failed')" in says(copy)
    records.write_json(copy / "status.json", {"status": "done"})
    assert "has no config.yaml" in says(copy)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**config, "task": {**config["task"], "dim": 3, "covariance": None}}))
    assert "has no weights.npz" in says(copy)
    arrays = records.read_arrays(folder / "weights.npz")
    records.write_arrays(copy / "weights.npz", arrays)
    assert "its configuration asks for" in says(copy)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    records.write_arrays(copy / "weights.npz", {name: np.full_like(array, np.nan) for name, array in arrays.items()})
    assert isinstance(identify.load(copy).weights, LSAWeights)
    assert "with NaN or infinity" in says(copy)
    assert "`--seed` must be an integer from 0 to 2^63 - 1" in says(folder, "--seed", "-1")
    assert "`prompts` must be an integer >= 2; got 0" in says(folder, "--prompts", "0")
    assert "the folder of `--json` must exist" in says(folder, "--json", str(tmp_path / "no" / "x.json"))
