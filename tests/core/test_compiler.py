"""Sums that a release of jaxlib gets wrong on CPUs are right once the package is imported."""

import os
import subprocess
import sys

from icl_lab.core import compiler

SUMS = """
import icl_lab
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
numbers = jnp.arange(16385.0)
rows = jnp.stack([numbers, 0 * numbers, 0 * numbers], axis=1)
sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
print(int(sums[-1]), float(jnp.max(jnp.abs(sums - numbers**2))))
"""


def test_a_batch_of_sums_is_right_in_a_process_that_imports_the_package():
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SUMS], env=clean, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == [str(16384**2), "0.0"]


def test_the_flag_is_added_once_to_those_that_are_there_and_never_against_the_users_own(monkeypatch):
    monkeypatch.setattr(compiler.version, "__version__", compiler.WRONG_SUMS[0])
    for given, expected in (
        ("", compiler.OWN_SUMS),
        ("--xla_dump_to=x", f"--xla_dump_to=x {compiler.OWN_SUMS}"),
        (f"{compiler.NAME}=dot", f"{compiler.NAME}=dot"),
    ):
        monkeypatch.setenv("XLA_FLAGS", given)
        compiler.settle()
        compiler.settle()
        assert os.environ["XLA_FLAGS"] == expected
    monkeypatch.setattr(compiler.version, "__version__", "0.10.1")
    monkeypatch.setenv("XLA_FLAGS", "")
    compiler.settle()
    assert os.environ["XLA_FLAGS"] == ""
