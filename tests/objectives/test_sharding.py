"""Prompts laid over eight devices give the numbers of one device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from icl_lab import devices

NUMBERS = """
import sys
import jax, numpy as np, optax
from icl_lab import models, objectives, precision, tasks, training

task = tasks.LinearRegression(dim=3, context_length=5, covariance=[2.0, 1.0, 0.5], noise_std=0.3)
dynamics, paired = tasks.LinearDynamics(2, 4, tasks.DiagonalUnitary()), models.LinearSelfAttention(causal=True, embedding="paired")
start, key = models.initializers.zhang(3, 0.5), jax.random.key(1)

def numbers():
    sampled = objectives.SampledLoss.build(task, models.LinearSelfAttention(), key, 3_000, groups=3)
    sequences = objectives.SampledLoss.build(dynamics, paired, key, 130, groups=2, every_position=True)
    yield from jax.tree.leaves((sampled.moments, sampled.groups, sequences.moments))
    yield training.gradient_flow(sampled, start).limit.w_kq
    for batch, chunk in ((64, 64), (60, 20)):  # eight devices divide 64 prompts, not 20
        streamed = objectives.StreamedLoss.build(task, models.SoftmaxSelfAttention(), key, batch=batch, chunk=chunk)
        result = training.descend(streamed, start, optax.adam(1e-2), 20, key=jax.random.key(2))
        yield from jax.tree.leaves(result.limit)
        yield result.trajectory.losses
        yield np.asarray([streamed.risk(start), streamed.standard_error(start)])

with precision.float64():
    found = [np.asarray(number) for number in numbers()]
np.savez(sys.argv[1], *found, devices=jax.device_count())
"""


def numbers(folder: Path, device_count: int) -> dict[str, np.ndarray]:
    """What a fresh process with so many virtual devices computes."""
    path = folder / f"{device_count}.npz"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={device_count}"
    subprocess.run([sys.executable, "-c", NUMBERS, path], env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=300)
    return dict(np.load(path))


def test_eight_devices_give_the_numbers_of_one(tmp_path):
    one, eight = numbers(tmp_path, 1), numbers(tmp_path, 8)
    assert one.pop("devices") == 1
    assert eight.pop("devices") == 8
    assert len(one) == len(eight) > 15
    for name, expected in one.items():
        np.testing.assert_allclose(eight[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_one_device_computes_what_it_did_before(key):
    keys = jax.random.split(key, 4)
    assert devices.shard(keys) is keys
    program = jax.jit(lambda keys: jax.random.normal(devices.shard(keys)[0]))
    assert "prompts" not in program.lower(keys).as_text()  # the name of the axis of devices
