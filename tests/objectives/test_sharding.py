"""Prompts laid over eight devices give the numbers of one device. Run as a script, this file writes its numbers."""

import os
import subprocess
import sys

import jax
import numpy as np
import optax

from icl_lab import models, objectives, tasks, training
from icl_lab.core import devices, precision


def numbers():
    """Sampled moments, and weights and losses of streamed training, with 1001 and 20 prompts a chunk: no multiples of eight."""
    task = tasks.LinearRegression(dim=3, context_length=5, covariance=[2.0, 1.0, 0.5], noise_std=0.3)
    start, key = models.initializers.zhang(3, 0.5), jax.random.key(1)
    sampled = objectives.SampledLoss.build(task, models.LinearSelfAttention(), key, 3_003, groups=3)
    streamed = objectives.StreamedLoss.build(task, models.SoftmaxSelfAttention(), key, batch=60, chunk=20)
    result = training.descend(streamed, start, optax.adam(1e-2), 20, key=key)
    return jax.tree.leaves((sampled.moments, sampled.groups, result.limit, result.trajectory.losses))


def test_eight_devices_give_the_numbers_of_one(tmp_path):
    assert jax.device_count() == 1
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    path = tmp_path / "eight.npz"
    subprocess.run([sys.executable, __file__, path], env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=300)
    eight = np.load(path)
    assert eight["devices"] == 8
    for index, expected in enumerate(numbers()):
        np.testing.assert_allclose(eight[f"arr_{index}"], expected, rtol=1e-12, atol=1e-12, err_msg=str(index))


def test_one_device_computes_what_it_did_before(key):
    keys = jax.random.split(key, 4)
    assert devices.shard(keys) is keys
    program = jax.jit(lambda keys: jax.random.normal(devices.shard(keys)[0]))
    assert "prompts" not in program.lower(keys).as_text()  # the name of the axis of devices


if __name__ == "__main__":
    with precision.float64():
        np.savez(sys.argv[1], *numbers(), devices=jax.device_count())
