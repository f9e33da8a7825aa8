"""The run store: names that depend on results only, and folders that are whole or absent whatever happens."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from icl_lab.runs import records, store

CONFIG = {
    "seed": 0,
    "run_root": "runs",
    "experiment": "default",
    "task": {"kind": "linear_regression", "dim": 5, "covariance": [2.0, 1.0], "rotate": None},
    "trainer": {"init_scale": 0.1, "steps": 10},
}


def test_hash_is_a_fixed_number_that_later_versions_must_keep():
    # Written down once from `sha256sum` of the canonical text: a change would orphan every stored run.
    text = (
        '{"seed":0,"task":{"covariance":[2,1],"dim":5,"kind":"linear_regression","rotate":null},'
        '"trainer":{"init_scale":0.1,"steps":10}}'
    )
    by_hand = subprocess.run(["sha256sum"], input=text.encode(), capture_output=True, check=True).stdout.decode()[:16]
    assert store.config_hash(CONFIG) == by_hand


def test_hash_ignores_where_a_run_is_kept_the_order_of_keys_and_the_spelling_of_numbers():
    same = {
        "trainer": {"steps": 10.0, "init_scale": 1e-1},
        "task": {"rotate": None, "covariance": [2, 1], "dim": 5, "kind": "linear_regression"},
        "seed": 0,
        "run_root": "/elsewhere",
        "experiment": "another name",
    }
    assert store.config_hash(same) == store.config_hash(CONFIG)


@pytest.mark.parametrize("key", ["seed", "task", "trainer"])
def test_hash_changes_with_anything_that_can_change_a_result(key):
    changed = CONFIG | {key: 1 if key == "seed" else CONFIG[key] | {"dim": 6}}
    assert store.config_hash(changed) != store.config_hash(CONFIG)


def test_published_folder_is_whole_and_the_temporary_one_is_gone(tmp_path):
    final = tmp_path / "exp" / "abc123"
    with store.partial_folder(final) as partial:
        _fill(partial)
        assert not final.exists()
        assert store.publish(partial, final)
    assert sorted(path.name for path in final.iterdir()) == ["status.json", "weights.npz"]
    assert [path.name for path in final.parent.iterdir()] == ["abc123"]


def test_exception_before_publishing_leaves_nothing(tmp_path):
    final = tmp_path / "exp" / "abc123"

    def fail_midway():
        with store.partial_folder(final) as partial:
            _fill(partial)
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        fail_midway()
    assert list(final.parent.iterdir()) == []


def test_second_of_two_equal_runs_is_dropped_and_the_first_stays(tmp_path):
    final = tmp_path / "exp" / "abc123"
    for content, wins in (("first", True), ("second", False)):
        with store.partial_folder(final) as partial:
            _fill(partial, content)
            assert store.publish(partial, final) is wins
    assert records.read_json(final / "status.json")["by"] == "first"
    assert len(list(final.parent.iterdir())) == 1


def test_failure_is_recorded_beside_the_final_name_and_success_removes_it(tmp_path):
    final = tmp_path / "exp" / "abc123"
    for attempt in ("one", "two"):
        with store.partial_folder(final) as partial:
            _fill(partial, attempt)
            record = store.publish_failure(partial, final)
    assert not store.is_finished(final)
    assert records.read_json(record / "status.json")["by"] == "two"
    with store.partial_folder(final) as partial:
        _fill(partial)
        store.publish(partial, final)
    assert [path.name for path in final.parent.iterdir()] == ["abc123"]


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_and_other_machines_kept(tmp_path, leave_over):
    final = tmp_path / "abc123"
    dead = leave_over(final)
    elsewhere = dead.with_name(re.sub(r"\+[0-9a-f-]+\+", "+another-boot+", dead.name))
    of_an_earlier_version = tmp_path / f".partial-abc123-{os.getpid()}-00000000@{socket.gethostname()}"
    for folder in (elsewhere, of_an_earlier_version):
        folder.mkdir()
    with store.partial_folder(final) as living:
        assert not dead.exists()
        dead.mkdir()
        assert store.remove_stale(tmp_path) == [dead]
        assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere, of_an_earlier_version])


def test_process_killed_while_writing_leaves_no_run_and_the_next_one_sweeps_its_folder(tmp_path):
    final = tmp_path / "exp" / "abc123"
    writer = _writer(final, pause=60.0)
    _wait_for(lambda: list(tmp_path.glob("exp/.partial-*/weights.npz")))
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert not final.exists()
    assert len(list(final.parent.glob(".partial-*"))) == 1
    with store.partial_folder(final) as partial:
        _fill(partial)
        assert store.publish(partial, final)
    assert [path.name for path in final.parent.iterdir()] == ["abc123"]


def test_two_processes_writing_one_run_leave_one_whole_folder(tmp_path):
    final = tmp_path / "exp" / "abc123"
    # Both are inside their temporary folder before either publishes.
    writers = [_writer(final, wait_for=2) for _ in range(2)]
    outputs = [writer.communicate(timeout=60)[0].decode().strip() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(outputs) == ["False", "True"]
    assert [path.name for path in final.parent.iterdir()] == ["abc123"]
    winner = writers[outputs.index("True")].pid
    assert records.read_json(final / "status.json")["by"] == winner
    assert records.read_arrays(final / "weights.npz")["w"].tolist() == [float(winner)]


def test_arrays_survive_to_the_last_bit_and_objects_are_refused(tmp_path, rng):
    path = tmp_path / "a.npz"
    arrays = {"w_pv": rng.normal(size=(3, 3)), "z": rng.normal(size=2) + 1j}
    records.write_arrays(path, arrays)
    read = records.read_arrays(path)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        records.write_arrays(path, {"bad": np.array([{}], dtype=object)})


def test_json_is_strict_and_keeps_full_precision(tmp_path):
    path = tmp_path / "m.json"
    records.write_json(
        path, {"x": np.float64(0.1) + 0.2, "bad": [np.nan, -np.inf], "n": np.int64(3), "a": np.eye(2), "z": np.array([1 + 2j])}
    )

    def refuse(token):
        raise AssertionError(token)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {
        "x": 0.1 + 0.2,
        "bad": ["nan", "-inf"],
        "n": 3,
        "a": [[1.0, 0.0], [0.0, 1.0]],
        "z": [{"real": 1.0, "imag": 2.0}],
    }


def _fill(folder, by="me"):
    records.write_json(folder / "status.json", {"status": "done", "by": by})
    records.write_arrays(folder / "weights.npz", {"w": np.arange(3.0)})


def _writer(final, pause=0.0, wait_for=0):
    """A process that writes the run `final` and publishes it once `wait_for` writers are at work, after a pause."""
    program = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from icl_lab.runs import records, store
        final, pause, wait_for = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
        with store.partial_folder(final) as partial:
            records.write_json(partial / "status.json", {"status": "done", "by": os.getpid()})
            records.write_arrays(partial / "weights.npz", {"w": [float(os.getpid())]})
            deadline = time.monotonic() + 30
            while len(list(final.parent.glob(".partial-*/weights.npz"))) < wait_for and not final.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(pause)
            print(store.publish(partial, final))
        """
    )
    arguments = [sys.executable, "-c", program, str(final), str(pause), str(wait_for)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE)


def _wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)
