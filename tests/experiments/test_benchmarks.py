"""Every benchmark runs, prints, and leaves its numbers as JSON and as a figure; how fast anything is, no test says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import icl_lab

CHECKOUT = Path(icl_lab.__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("script", "numbers"),
    [
        ("core", {"flow_against_sgd": {"sgd_over_flow_seconds"}}),
        ("flow", {"step_growth": {"exponent_eigenbases_25_to_200", "peak_mb"}, "whole_flow": {"exponent_seconds_per_step"}}),
        ("mixers", {"growth": {"exponent_kda"}, "blocks": {"ratio_deltanet"}, "memory": {"largest_beside_mb"}}),
        ("moments", {"against_length": {"exponent_seconds_per_prompt"}, "against_prompts": {"exponent_seconds"}}),
        ("sharding", {"sharding": {"training_two_devices_over_one"}}),
        ("sweep", {"sweep": {"seconds_of_one_run"}}),
    ],
)
def test_a_benchmark_prints_and_leaves_numbers_and_a_figure(script, numbers, tmp_path):
    output = tmp_path / "out" / f"{script}.json"
    command = [sys.executable, str(CHECKOUT / "experiments" / "benchmarks" / f"{script}.py"), "--quick", "-o", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["machine"]["cores"] == os.cpu_count()
    for part, names in numbers.items():
        assert names <= set(found[part])
        for name in names:
            assert name.replace("_", " ") in done.stdout
    if script == "sharding":
        assert found["sharding"]["largest_relative_difference"] < 1e-12
    if script != "core":
        assert output.with_suffix(".png").stat().st_size > 10_000
        assert output.with_suffix(".csv").read_text().count("\n") > 1
