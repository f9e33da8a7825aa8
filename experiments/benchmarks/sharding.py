"""Throughput of sampled moments and of streamed training on one device and on two.

    python experiments/benchmarks/sharding.py [--quick] [-o sharding.json]

Where the machine has one device, which is the rule without accelerators, the devices are virtual ones that share its cores.
One device uses all cores already where a program has work for them, so nothing more than that is to be gained there.
"""

from __future__ import annotations

from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from icl_lab import models, objectives, tasks
from icl_lab.core import precision
from icl_lab.training.descent import update


def rates(quick: bool) -> dict[str, Any]:
    """Prompts per second of this process's devices, and numbers that do not depend on how many there are."""
    key, prompts = jax.random.key(0), 20_000 if quick else 200_000
    batch, steps = (512, 4) if quick else (2048, 20)
    task = tasks.LinearRegression(dim=5, context_length=20)
    moments = objectives.SampledLoss.build(task, models.LinearSelfAttention(), key, prompts, groups=2)
    streamed = objectives.StreamedLoss.build(task, models.SoftmaxSelfAttention(), key, batch, batch)
    optimiser = optax.adam(1e-3)

    @jax.jit
    def train(state, key):
        return jax.lax.scan(lambda s, k: update(streamed, optimiser, s, k), state, jax.random.split(key, steps))

    def trained():
        with precision.float64():
            weights = jax.tree.map(jnp.asarray, models.initializers.zhang(5, 0.5))
            return jax.block_until_ready(train((weights, optimiser.init(weights)), key))

    def sampled():
        return objectives.SampledLoss.build(task, models.LinearSelfAttention(), key, prompts, groups=2)

    for_moments, for_training = common.medians_in_turns([sampled, trained], 2 if quick else common.REPEATS)
    return {
        "devices": jax.device_count(),
        "moments_prompts_per_second": moments.prompts / for_moments,
        "training_prompts_per_second": steps * batch / for_training,
        "peak_mb": common.peak_megabytes(),
        "mean_feature": float(np.mean(moments.moments.gram)),
        "last_loss": float(trained()[1][-1]),
    }


def sharding(quick: bool) -> dict[str, Any]:
    """Every number of devices in a process of its own."""
    rows = []
    for count in (1, 2):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
        rows.append(common.in_fresh_process(rates, quick, environment=flags))
    one, two = rows
    return {
        "moments_two_devices_over_one": two["moments_prompts_per_second"] / one["moments_prompts_per_second"],
        "training_two_devices_over_one": two["training_prompts_per_second"] / one["training_prompts_per_second"],
        "largest_relative_difference": max(abs(two[name] / one[name] - 1) for name in ("mean_feature", "last_loss")),
        "rows": rows,
    }


def draw(figure: Figure, results: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Prompts per second by the number of devices."""
    rows = results["sharding"]["rows"]
    names = {"moments_prompts_per_second": "sampled moments", "training_prompts_per_second": "streamed training"}
    for panel, (name, title) in zip(figure.subplots(1, 2), names.items(), strict=True):
        panel.bar([str(row["devices"]) for row in rows], [row[name] for row in rows], width=0.5)
        panel.set(title=title, xlabel="devices", ylabel="prompts per second")
    caption = (
        f"Prompts laid over virtual devices that share the {results['machine']['cores']} cores of one machine. What they "
        f"compute differs by at most {results['sharding']['largest_relative_difference']:.0e} of its size."
    )
    return caption, {name: [row[name] for row in rows] for name in ("devices", *names)}


if __name__ == "__main__":
    common.run(
        "Throughput of sampled moments and of streamed training on one device and on two.",
        {"One device against two virtual ones": sharding},
        draw,
    )
