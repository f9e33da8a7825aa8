"""Points of a sweep done together: each has the folder that it would have by itself, and one that fails stops no other."""

import copy

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from icl_lab.config import paths
from icl_lab.config.compose import register
from icl_lab.runs import execute, records, store, sweep

SETTINGS = ("task.dim=2", "task.context_length=6", "analysis.prompts=200", "analysis.context_lengths=[]")


@pytest.fixture
def config(tmp_path):
    register()
    with initialize_config_dir(str(paths.config_dir()), version_base="1.3"):
        return execute.resolve(compose("run", overrides=[f"run_root={tmp_path}", *SETTINGS, "trainer.init=zhang_random"]))


def point(config, seed, scale, root=None):
    changed = copy.deepcopy(config)
    changed["seed"], changed["trainer"]["init_scale"] = seed, scale
    changed["run_root"] = changed["run_root"] if root is None else str(root)
    return changed


def do(configs):
    with open("/dev/null", "w") as nowhere:
        console = Console(file=nowhere, record=True, width=160)
        return sweep.execute_all(configs, console), console.export_text()


def test_points_are_what_they_are_by_themselves_and_a_failing_one_stops_none(config, tmp_path, leave_over):
    configs = [point(config, 0, 0.1), point(config, 1, -1.0), point(config, 1, 0.2)]
    ends, printed = do(configs)
    assert [end.status for end in ends] == ["done", "failed", "done"]
    assert records.read_json(store.failed_folder(ends[1].folder) / "status.json")["status"] == "failed"
    assert printed.index("failed") < printed.index("converged")

    alone, _ = do([point(config, 1, 0.2, tmp_path / "alone")])
    assert alone[0].folder.name == ends[2].folder.name
    assert {path.name for path in alone[0].folder.iterdir()} == {path.name for path in ends[2].folder.iterdir()}
    one, many = (records.read_arrays(end.folder / "weights.npz") for end in (alone[0], ends[2]))
    assert one.keys() == many.keys()
    for name in one:
        # A hundredth of the tolerance that the flow is asked for: the steps are the same, only their sums are in another order.
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-10)
    one, many = (records.read_json(end.folder / "metrics.json") for end in (alone[0], ends[2]))
    assert many["comparison"]["ols"]["risk"] == pytest.approx(one["comparison"]["ols"]["risk"], rel=1e-9)
    assert many["comparison"]["model"]["risk"] == pytest.approx(one["comparison"]["model"]["risk"], rel=1e-9)

    # What is in the store is found there, not made again.
    before = (ends[0].folder / "status.json").stat().st_mtime_ns
    again, _ = do(configs)
    assert [end.status for end in again] == ["done", "failed", "done"]
    assert (ends[0].folder / "status.json").stat().st_mtime_ns == before
    leftover = leave_over(ends[0].folder)
    do([configs[0], configs[2]])
    assert not leftover.exists()


def test_a_seed_without_effect_is_said_and_its_points_are_solved_once(config, monkeypatch):
    solved = []
    flows = sweep.gradient_flow_each

    def counted(problems, **settings):
        solved.append(len(problems))
        return flows(problems, **settings)

    monkeypatch.setattr(sweep, "gradient_flow_each", counted)
    exact = copy.deepcopy(config)
    exact["trainer"]["init"] = "zhang"
    configs = [point(exact, seed, scale) for seed in range(3) for scale in (0.1, 0.2)]
    ends, printed = do(configs)
    assert [end.status for end in ends] == ["done"] * 6
    assert solved == [2]
    assert "`seed` has no effect here" in printed
    assert printed.index("no effect") < printed.index("converged")
    tables = [records.read_json(end.folder / "metrics.json")["comparison"] for end in ends]
    assert tables[0] == tables[2] == tables[4] != tables[1]

    # A random start depends on the seed.
    _, printed = do([point(config, seed, 0.1) for seed in range(2)])
    assert solved == [2, 2]
    assert "no effect" not in printed
