"""Folders of living processes are kept, whoever asks from wherever; folders of dead ones are not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icl_lab.runs import liveness, store

WORKER = """
import sys, time
from pathlib import Path
from icl_lab.runs import store
with store.partial_folder(Path(sys.argv[1])) as partial:
    print(partial, flush=True)
    time.sleep(120)
"""
SWEEPER = """
import sys
from pathlib import Path
from icl_lab.runs import store
print(*store.remove_stale(Path(sys.argv[1])))
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="this machine does not let a user make PID namespaces",
)


@pytest.fixture
def worker(tmp_path):
    """A process at work on the run `abc123`, and its temporary folder."""
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "abc123")], stdout=subprocess.PIPE, text=True)
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdout.close()


def sweep(parent, prefix=()):
    done = subprocess.run([*prefix, sys.executable, "-c", SWEEPER, str(parent)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_namespaces
def test_folder_of_a_living_process_is_kept_by_one_in_another_pid_namespace(tmp_path, worker):
    _, partial = worker
    make_old(partial, 2 * liveness.SILENCE)
    assert sweep(tmp_path, NAMESPACE) == []
    assert partial.is_dir()


@needs_namespaces
def test_folder_of_a_killed_process_is_swept_by_one_in_another_pid_namespace(tmp_path, worker):
    process, partial = worker
    process.send_signal(signal.SIGKILL)
    process.wait()
    make_old(partial, liveness.GRACE + 1)
    assert sweep(tmp_path, NAMESPACE) == [str(partial)]


def test_folder_is_kept_until_its_process_is_killed(tmp_path, worker):
    process, partial = worker
    assert sweep(tmp_path) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sweep(tmp_path) == [str(partial)]


def test_number_of_a_dead_process_that_another_one_has_now_keeps_no_folder(tmp_path):
    partial = tmp_path / f".partial-abc123-{liveness.owner(tmp_path)}"
    partial.mkdir()
    make_old(partial, liveness.GRACE + 1)
    assert store.remove_stale(tmp_path) == [partial]


def test_folder_of_another_host_is_dead_after_a_day_without_heartbeat(tmp_path):
    name = f"{os.getpid()}-00000000@elsewhere+another-boot+1+2"
    folder = tmp_path / name
    folder.mkdir()
    make_old(folder, liveness.SILENCE - 60)
    assert not liveness.is_dead(folder, name)
    make_old(folder, liveness.SILENCE + 60)
    assert liveness.is_dead(folder, name)


def test_heartbeat_is_that_of_the_folder_under_whatever_name(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "HEARTBEAT", 0.02)
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    with liveness.kept_alive(before):
        before.rename(after)
        make_old(after, 1e6)
        deadline = time.monotonic() + 20
        while time.time() - after.stat().st_mtime > 1e5:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_without_locks_process_numbers_decide_in_one_namespace_and_silence_across(tmp_path, monkeypatch, leave_over):
    monkeypatch.setattr(liveness, "fcntl", None)
    dead = leave_over(tmp_path / "abc123")
    with store.partial_folder(tmp_path / "def456") as living:
        assert not dead.exists()
        make_old(living, 2 * liveness.SILENCE)
        assert store.remove_stale(tmp_path) == []
        monkeypatch.setattr(liveness, "_namespace", lambda: "another")
        make_old(living, liveness.SILENCE - 60)
        assert store.remove_stale(tmp_path) == []


def test_checkpoint_stays_while_another_process_does_the_same_run_and_goes_with_the_last(tmp_path):
    final = tmp_path / "abc123"
    checkpoint = store.checkpoint_file(final)
    checkpoint.parent.mkdir()
    with store.partial_folder(final):
        with store.partial_folder(final) as first:
            (first / "status.json").write_text("{}")
            assert store.publish(first, final)
        assert checkpoint.parent.is_dir()
        assert store.remove_stale(tmp_path) == []
    assert store.remove_stale(tmp_path) == [checkpoint.parent]


def make_old(folder, seconds):
    then = time.time() - seconds
    os.utime(folder, (then, then))
