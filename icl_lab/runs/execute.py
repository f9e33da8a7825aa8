"""The job of `icl-lab run`: configuration -> training -> comparison with theory and estimators -> run folder.

A run that is in the store is not run again. A run that raises leaves the record of its failure; one that ends short of
convergence is stored under the status that says so, and is no success.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from icl_lab.config import compose, schema, yaml12
from icl_lab.core import devices, precision
from icl_lab.core.errors import in_words
from icl_lab.core.prng import check_seed
from icl_lab.report import console as present
from icl_lab.runs import distributed, provenance, records, store
from icl_lab.runs.drawing import Drawing, drawing
from icl_lab.runs.simulate import Simulation, simulate


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a run is, and its status as in status.json."""

    folder: Path
    status: str

    @property
    def converged(self) -> bool:
        """Whether its training ended as it should."""
        return self.status == "done"


def execute(config: DictConfig, console: Console | None = None) -> Outcome:
    """Do one run, or find it in the store, and print its table.

    Args:
      config: the composed configuration.
      console: where to print; standard output by default.

    Returns:
      The folder and its status.

    Raises:
      DeviceError: no device to compute on.
      DamagedRunError: the run is in the store, and its folder cannot be read.
      IclLabError: the configuration describes no valid problem; recorded in the store before it is raised.
      Exception: whatever else the run raised, recorded likewise.
    """
    devices.first()
    console = console or (present.wide_console() if distributed.is_first() else Console(quiet=True))
    resolved = resolve(config)
    folder = store.run_folder(resolved)
    if distributed.as_first_says(store.is_finished(folder)):
        store.remove_stale(folder.parent)
        console.print(f"This run is done already, in [bold]{escape(str(folder))}[/]", highlight=False, soft_wrap=True)
        return _outcome(folder, console)
    if not distributed.is_first():
        with precision.float64():
            status = simulate(resolved).status
        return Outcome(folder, status)

    def work(figures: Drawing) -> tuple[Simulation, dict[str, Any]]:
        # A process that went on from a checkpoint would leave the others behind.
        checkpoint = store.checkpoint_file(folder) if distributed.is_alone() else None
        return trained_alone(resolved, checkpoint, figures)

    if not publish(resolved, folder, work, draw=resolved["analysis"]["figures"] is not False):
        console.print("Another process finished the same run first; its folder is kept.")
    return _outcome(folder, console)


def trained_alone(resolved: dict[str, Any], checkpoint: Path | None, figures: Drawing) -> tuple[Simulation, dict[str, Any]]:
    """One run by itself, and what `record` says of it; `figures` begins when it is trained."""
    with precision.float64(), provenance.stopwatch() as watch:
        result = simulate(resolved, checkpoint, figures.trained)
    return result, record(watch.wall, watch.compile)


def publish(
    resolved: dict[str, Any], folder: Path, work: Callable[[Drawing], tuple[Simulation, dict[str, Any]]], *, draw: bool
) -> bool:
    """Do a run in a temporary folder and give it its name; leave the record of its failure if `work` raises.

    Args:
      resolved: the configuration.
      folder: the run folder.
      work: gives the run and what `record` says of it; it may hand over what there is to draw before it returns.
      draw: whether to draw its figures.

    Returns:
      False if another process finished the same run first.
    """
    with store.partial_folder(folder) as partial:
        (partial / "config.yaml").write_text(yaml12.dump(resolved), encoding="utf-8")
        records.write_json(partial / "status.json", {"status": "running", "schema_version": store.SCHEMA_VERSION})
        try:
            with drawing(partial / "figures", draw) as figures:
                result, made = work(figures)
                _write(result, partial)
                problem = figures.finish(result)
            status = {"status": result.status, "verdict": result.metrics["verdict"], "reason": result.metrics["reason"]}
            pictures = {"figures": problem} if problem else {}
            records.write_json(partial / "status.json", {**status, **pictures, "resumed": result.training.resumed, **made})
        except Exception as error:
            status = {
                "status": "failed",
                "error": in_words(error),
                "traceback": "".join(traceback.format_exception(error)),
            }
            try:
                records.write_json(partial / "status.json", {**status, "schema_version": store.SCHEMA_VERSION})
            except OSError:  # a full disk has no room for the record either
                raise error from None
            kept = store.publish_failure(partial, folder)
            print(f"icl-lab: the record of the failure is in {kept}", file=sys.stderr)
            raise
        return store.publish(partial, folder)


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, after the checks that composing does not make.

    Raises:
      InvalidValueError: a key that no schema knows or a value of the wrong kind (see `compose.checked`), an experiment name
        that is no folder name, or a number that is no seed.
    """
    resolved = OmegaConf.to_container(compose.checked(config), resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    schema.check_experiment(resolved["experiment"])
    check_seed(resolved["seed"], "seed")
    check_seed(resolved["analysis"]["seed"], "analysis.seed")
    return {str(key): value for key, value in resolved.items()}


def _write(result: Simulation, folder: Path) -> None:
    records.write_json(folder / "metrics.json", result.metrics)
    records.write_arrays(
        folder / "weights.npz",
        {**named_leaves("initial", result.initial), **named_leaves("limit", result.training.limit)},
    )
    trajectory = result.training.trajectory
    curves = {"times": trajectory.times, "losses": trajectory.losses, "gradient_norms": trajectory.gradient_norms}
    records.write_arrays(folder / "trajectory.npz", {**curves, **named_leaves("weights", trajectory.weights)})


def named_leaves(prefix: str, tree: Any) -> dict[str, Any]:
    """The arrays of a pytree by their path, as in `limit.w_pv` or `limit[0].w_pv`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def record(seconds: float, compile_seconds: float, together: int = 1) -> dict[str, Any]:
    """What status.json says of the making of a run: of its share, if it was made `together` with others of a sweep."""
    return {
        "schema_version": store.SCHEMA_VERSION,
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "trained_together": together,
        "peak_memory_bytes": provenance.peak_memory_bytes(),
        "provenance": _made_with(),
    }


@functools.cache
def _made_with() -> dict[str, Any]:
    with precision.float64():
        return provenance.describe()


def _outcome(folder: Path, console: Console) -> Outcome:
    status = records.read_status(folder)
    present.print_comparison(records.read_metrics(folder), status, folder, console)
    return Outcome(folder, status["status"])
