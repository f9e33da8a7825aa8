"""No program of the library waits for itself: distributions that sort, predictors that factorise, in processes with a time
limit.

A hang shows as a process that does not end, so each recipe runs in one of its own. On one core there is nothing to wait for.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl_lab
from icl_lab.core import compiled

PACKAGE = Path(icl_lab.__file__).parent
PATIENCE = 240
"""Seconds after which a recipe, a few seconds of work, is said to hang."""
COMBINATIONS = 100

RECIPE = """
import sys
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from icl_lab import analysis, estimators, models
from icl_lab.models import initializers
from icl_lab.tasks.prompt import Prompt, Task

ORDERS = {
    "permutation": lambda key, d: jax.random.permutation(key, d),
    "choice": lambda key, d: jax.random.choice(key, d, (d,), replace=False),
    "argsort": lambda key, d: jnp.argsort(jax.random.normal(key, (d,))),
    "top_k": lambda key, d: jax.lax.top_k(jax.random.normal(key, (d,)), d)[1],
}
MIXES = {
    "none": lambda x: x,
    "qr": lambda x: x @ jnp.linalg.qr(x.T @ x)[0],
    "cholesky": lambda x: x @ jnp.linalg.cholesky(x.T @ x / len(x) + jnp.eye(x.shape[1])),
}

class Sorting(Task):
    dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    order: str = eqx.field(static=True)
    mix: str = eqx.field(static=True)
    label_dim: int = eqx.field(static=True)

    def sample(self, key):
        first, second, third = jax.random.split(key, 3)
        d = self.dim
        w = jnp.where(ORDERS[self.order](first, d) < 3, jax.random.normal(second, (d,)), 0.0)
        x = MIXES[self.mix](jax.random.normal(third, (self.context_length + 1, d)))
        y = x @ w
        return Prompt(inputs=x[:-1], labels=y[:-1, None], query=x[-1], target=y[-1:])

def gram(prompt):
    return prompt.inputs.T @ prompt.inputs + jnp.eye(prompt.inputs.shape[1])

def moment(prompt):
    return prompt.inputs.T @ prompt.labels[:, 0]

def eigen(prompt):
    values, vectors = jnp.linalg.eigh(gram(prompt))
    return vectors @ ((vectors.T @ moment(prompt)) / values)

USERS = {
    "solve": lambda p: jnp.linalg.solve(gram(p), moment(p)),
    "inv": lambda p: jnp.linalg.inv(gram(p)) @ moment(p),
    "cholesky": lambda p: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram(p)), moment(p)),
    "eigh": eigen,
    "lstsq": lambda p: jnp.linalg.lstsq(p.inputs, p.labels[:, 0])[0],
    "svd": lambda p: jnp.linalg.pinv(p.inputs) @ p.labels[:, 0],
    "qr": lambda p: jnp.linalg.qr(gram(p))[0] @ moment(p),
}
for line in sys.stdin:
    order, mix, users, d, n, prompts, chunk = line.split()
    d, n = int(d), int(n)
    predictors = {
        "ols": estimators.named("ols"),
        "ridge": estimators.named("ridge", penalty=1.0),
        "layer": eqx.Partial(models.LinearSelfAttention(), initializers.zhang(d, 0.1)),
    }
    for name in users.split(","):
        predictors[name] = lambda p, weights=USERS[name]: (weights(p) @ p.query)[None]
    task = Sorting(dim=d, context_length=n, order=order, mix=mix, label_dim=1)
    risks = analysis.sampled_risks(task, predictors, jax.random.key(0), int(prompts), int(chunk))
    assert np.all(np.isfinite(risks.risks.mean))
    print("done", line.strip(), flush=True)
"""


def end(lines: list[str], patience: float = PATIENCE) -> list[str]:
    """The combinations that a process of its own gets through before its time is up."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    process = subprocess.Popen(
        [sys.executable, "-c", RECIPE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, _ = process.communicate("\n".join(lines) + "\n", timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    return [line.removeprefix("done ") for line in out.splitlines()]


@pytest.mark.parametrize(
    "combination",
    [
        "permutation none solve 20 40 8192 1024",
        "choice none solve,eigh,inv 20 40 4096 1024",
        "argsort qr qr,cholesky 12 20 4096 512",
    ],
)
def test_distributions_that_sort_and_predictors_that_factorise_end(combination):
    assert end([combination]) == [combination]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_combination_of_a_hundred_hangs():
    rng = np.random.default_rng(0)
    users = ("solve", "inv", "cholesky", "eigh", "lstsq", "svd", "qr")
    combinations = []
    for _ in range(COMBINATIONS):
        order = rng.choice(["permutation", "choice", "argsort", "top_k"])
        mix = rng.choice(["none", "qr", "cholesky"])
        chosen = ",".join(rng.choice(users, rng.integers(1, 4), replace=False))
        d = int(rng.integers(2, 24))
        chunk = int(rng.choice([64, 512, 1024]))
        combinations.append(f"{order} {mix} {chosen} {d} {int(rng.integers(d, 3 * d))} {4 * chunk} {chunk}")
    hung = []
    for first in range(0, COMBINATIONS, 10):
        waiting = combinations[first : first + 10]
        while waiting:
            done = end(waiting, patience=60 + 30 * len(waiting))
            waiting = waiting[len(done) :]
            hung += waiting[:1]
            waiting = waiting[1:]
    assert not hung


@pytest.mark.parametrize("name", ["cholesky", "inv", "eigvalsh", "eigh", "svd", "qr", "det", "pinv", "eigvals"])
def test_a_batch_of_matrices_gives_the_numbers_of_jax(name, rng):
    function = getattr(jnp.linalg, name)
    matrices = rng.normal(size=(2, 3, 4, 4))
    matrices = matrices @ np.swapaxes(matrices, -1, -2) + np.eye(4)
    for one, other in zip(jax.tree.leaves(compiled.jit(function)(matrices)), jax.tree.leaves(function(matrices)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_rules_of_jax_stand_again_outside():
    before = dict(compiled._rules())
    compiled.jit(lambda x: jnp.linalg.inv(x))(np.stack([np.eye(3)] * 4))
    assert compiled._rules() == before


def test_compiled_functions_take_what_equinox_takes():
    @compiled.jit
    def scaled(x, function, factor=2):
        """Doc."""
        return {"value": function(x) * factor, "name": "scaled"}

    result = scaled(jnp.arange(3.0), jnp.sin, factor=3)
    assert result["name"] == "scaled"
    np.testing.assert_allclose(result["value"], 3 * np.sin(np.arange(3.0)))
    assert scaled.__doc__ == "Doc."
    gradient = jax.grad(lambda x: jnp.sum(scaled(x, jnp.linalg.inv, factor=1)["value"]))(2 * jnp.eye(2))
    np.testing.assert_allclose(gradient, -0.25 * np.ones((2, 2)))


def test_everything_in_the_library_is_compiled_in_one_way():
    """A program compiled otherwise, with a factorisation in it, may wait for itself for ever."""
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "compiled.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("jax.jit", "eqx.filter_jit", "equinox.filter_jit"):
                offenders.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not offenders
