"""Settings every test shares: strict dtypes and ranks, float64 inside a scope (as the library's users do), no windows.

A process that has grown too large and a worker that was lost are failures.
"""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: without LLVM's expensive passes the suite takes a quarter less time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import hypothesis
import jax
import numpy as np
import pytest

from icl_lab.core import precision, programs

LARGEST = programs.Size(maps=20_000, resident=2_500_000_000)
"""Of a process at the end of a test module. Linux kills one at 65,530 maps."""

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Compilation trips hypothesis's default deadline; the seed is fixed so that a red test can be run again.
hypothesis.settings.register_profile("icl_lab", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.load_profile("icl_lab")


@pytest.fixture(autouse=True)
def _float64_scope(request):
    """Every test runs in the float64 scope, except those marked `default_precision`."""
    if request.node.get_closest_marker("default_precision"):
        yield
    else:
        with precision.float64():
            yield


@pytest.fixture(autouse=True, scope="module")
def _bounded_process():
    yield
    assert all(now < most for now, most in zip(programs.size(), LARGEST, strict=True)), f"{programs.size()}: at most {LARGEST}"


_lost = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if error:
        _lost.append(node)


def pytest_sessionfinish(session):
    # pytest-xdist names the test during which a worker died; if there was none, it reports a success.
    if _lost and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
