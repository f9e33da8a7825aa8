"""The job of `icl-lab identify`: the model of a finished run, rebuilt from its folder, and the algorithm that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icl_lab import analysis
from icl_lab.analysis.identify.identification import COLUMNS, NONE
from icl_lab.config import build
from icl_lab.config.complete import complete
from icl_lab.core import devices, precision
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.prng import check_seed, stream
from icl_lab.core.progress import phase
from icl_lab.core.typing import Weights
from icl_lab.models import Learner
from icl_lab.report import console as present
from icl_lab.runs import records
from icl_lab.runs.execute import named_leaves
from icl_lab.tasks.prompt import Task


class TrainedModel(NamedTuple):
    """What a run trained, on what, and the weights it ended with."""

    task: Task
    model: Learner
    weights: Weights


def load(folder: Path) -> TrainedModel:
    """The model of a run.

    Args:
      folder: a run folder of `icl-lab run`.

    Raises:
      DamagedRunError: a file that cannot be read.
      InvalidValueError: no folder of a finished run, or weights that are not those of its configuration.
    """
    status = folder / "status.json"
    if not status.is_file():
        raise InvalidValueError(
            f"RUN_FOLDER must be the folder of a finished run of `icl-lab run`; {folder} has no status.json."
        )
    said = records.read_status(folder)["status"]
    if said in ("running", "failed"):
        raise InvalidValueError(
            f"the run in {folder} did not finish (its status is {said!r}), so that it has no trained weights."
        )
    for name in ("config.yaml", "weights.npz"):
        if not (folder / name).is_file():
            raise InvalidValueError(
                f"RUN_FOLDER must hold config.yaml and weights.npz of a finished run; {folder} has no {name}."
            )
    devices.first()
    config = complete(records.read_config(folder), str(folder / "config.yaml"))
    arrays = records.read_arrays(folder / "weights.npz")
    with precision.float64():
        task, model = build.build_task(config["task"]), build.build_model(config["model"])
        start = build.build_weights(config["trainer"], config["model"], task, model, jax.random.key(config["seed"]))
        names = named_leaves("limit", start)
        shapes = {name: np.shape(leaf) for name, leaf in names.items()}
        found = {name: array.shape for name, array in arrays.items() if name.startswith("limit")}
        if found != shapes:
            raise InvalidValueError(f"the weights in {folder} have shapes {found}; its configuration asks for {shapes}.")
        weights = jax.tree.unflatten(jax.tree.structure(start), [arrays[name] for name in names])
    return TrainedModel(task, model, weights)


def find(folder: Path, prompts: int, seed: int) -> analysis.Identification:
    """The algorithm that the model of a run runs.

    Args:
      folder: a run folder.
      prompts: number of prompts to judge on.
      seed: of the prompts.

    Raises:
      InvalidValueError: no folder of a finished run, too few prompts, or no seed.
      DamagedRunError: a file of the run that cannot be read.
      NonFiniteError: a model whose training diverged.
    """
    check_seed(seed, "--seed")
    trained = load(folder)
    with precision.float64():
        key = stream(jax.random.key(seed), "identify")
    with phase("fitting families of algorithms"):
        return analysis.identify(eqx.Partial(trained.model, trained.weights), trained.task, key, prompts)


def show(found: analysis.Identification, console: Console | None = None) -> None:
    """Print the families and the verdict, on standard output by default."""
    console = console or present.wide_console()
    console.print(_table(found))
    colour = "yellow" if found.verdict == NONE else "green"
    console.print(f"[{colour}]{escape(found.verdict.upper())}[/]: {escape(found.reason)}", highlight=False)
    console.print(f"Rule: {escape(found.rule)}", highlight=False)


def _table(found: analysis.Identification) -> Table:
    table = Table(title=f"Families of algorithms by distance to the model, on {found.prompts} fresh prompts")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("family", "fitted") else "right")
    for row in found.rows():
        table.add_row(*map(escape, row))
    return table
