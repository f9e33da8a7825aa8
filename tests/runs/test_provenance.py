"""What a run was made with."""

import subprocess

import jax
import jax.numpy as jnp
import pytest

import icl_lab
from icl_lab.runs import provenance


@pytest.fixture
def repository(tmp_path):
    """A git repository with a package of one tracked file, and a function that runs git in it."""

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init", "-q")
    git("add", "package")
    git("commit", "-q", "-m", "first")
    return package, git


def test_commit_and_dirty_flag_are_those_of_the_checkout(repository):
    package, git = repository
    commit = git("rev-parse", "HEAD")
    assert provenance.git_state(package) == {"commit": commit, "dirty": False}
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance.git_state(package) == {"commit": commit, "dirty": True}


def test_installed_copy_does_not_borrow_the_commit_of_the_repository_around_it(repository, tmp_path_factory):
    package, _ = repository
    installed = package.parent / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert provenance.git_state(installed) is None
    assert provenance.git_state(tmp_path_factory.mktemp("nowhere")) is None


def test_description_records_the_precision_in_force():
    inside = provenance.describe()
    assert inside["precision"] == {"default_float": "float64", "matmul": "highest"}
    assert inside["icl_lab"] == icl_lab.__version__
    assert inside["packages"]["jax"] == jax.__version__
    assert inside["device"]["platform"] == "cpu"


@pytest.mark.default_precision
def test_description_outside_the_scope_says_float32():
    assert provenance.describe()["precision"] == {"default_float": "float32", "matmul": "default"}


def test_stopwatch_tells_compilation_from_the_rest():
    with provenance.stopwatch() as first:
        jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7)))
    with provenance.stopwatch() as second:
        sum(range(1000))
    assert 0 < first.compile < first.wall
    assert second.compile == 0


def test_peak_memory_is_that_of_a_process_with_jax_in_it():
    assert 50e6 < provenance.peak_memory_bytes() < 1e12
