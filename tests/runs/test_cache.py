"""The compilation cache of the command line: where it is, that it can be turned off, and that damage does no harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import icl_lab
from icl_lab.runs import cache

CHECKOUT = Path(icl_lab.__file__).parent.parent
PROGRAM = """
import json, sys
from icl_lab.runs import cache
cache.enable()
import jax
counts = {}
jax.monitoring.register_event_listener(lambda event, **_: counts.update({event: counts.get(event, 0) + 1}))
assert float(jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones(7))) > 5
print(json.dumps({name.rsplit("/", 1)[1]: count for name, count in counts.items()}))
"""


@pytest.fixture
def clean(monkeypatch):
    """No variable of the cache, and none left behind."""
    for name in (cache.FOLDER, cache.SWITCH, "XDG_CACHE_HOME", *cache.DEFAULTS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def program(**environment):
    inherited = {name: value for name, value in os.environ.items() if name not in (cache.FOLDER, cache.SWITCH, *cache.DEFAULTS)}
    environment = {**inherited, "PYTHONPATH": str(CHECKOUT), "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_second_process_compiles_nothing_and_damaged_entries_are_replaced(tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    first, _ = program(**home)
    assert "cache_hits" not in first
    entries = list((tmp_path / "icl-lab").rglob("*-cache"))
    assert len(entries) == first["compile_requests_use_cache"] > 2
    for entry, content in zip(entries, (b"", b"no program" * 100), strict=False):
        entry.write_bytes(content)
    damaged, messages = program(**home)
    assert damaged["cache_hits"] == len(entries) - 2
    assert messages == ""
    mended, _ = program(**home)
    assert mended["cache_hits"] == mended["compile_requests_use_cache"] == len(entries)


def test_turned_off_it_leaves_no_folder(tmp_path):
    counts, _ = program(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")
    assert "tasks_using_cache" not in counts
    assert list(tmp_path.iterdir()) == []


def test_folder_is_the_users_choice_or_one_for_this_processor(clean, tmp_path):
    clean.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.location().parent == tmp_path / "icl-lab"
    assert cache.enable() == cache.location() == Path(os.environ[cache.FOLDER])
    clean.setenv(cache.FOLDER, str(tmp_path / "mine"))
    assert cache.enable() == tmp_path / "mine"
    clean.setenv(cache.FOLDER, "/proc/no/such/folder")
    assert cache.enable() is None
    clean.setenv(cache.SWITCH, "0")
    assert cache.location() is None


def test_oldest_entries_go_first_when_the_folder_is_full(tmp_path):
    for age, name in enumerate(["newest", "middle", "oldest"]):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    cache.prune(tmp_path, 300)
    assert len(list(tmp_path.iterdir())) == 3
    cache.prune(tmp_path, 150)
    assert [path.name for path in tmp_path.iterdir()] == ["newest"]
