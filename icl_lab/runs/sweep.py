"""The points of a sweep in one process: those that can share a compiled program are trained and compared together.

Every point has the run folder it would have by itself, published as soon as it is finished. A point that fails leaves its
record and stops no other; a point that is in the store is not run again. But a group of points that is solved together is
always the same: the last bits of a limit depend on the size of the program that found it, and a sweep that was killed and
started anew has to end at the same bits.

Points that differ in a key without effect (the seed of a flow on an exact loss from a fixed start) are one problem: it is said
before training, and the problem is solved once for all of them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from icl_lab.core import devices, precision
from icl_lab.core.errors import DamagedRunError
from icl_lab.core.progress import phase
from icl_lab.report import console as present
from icl_lab.runs import execute, provenance, records, store
from icl_lab.runs.drawing import Drawing
from icl_lab.runs.simulate import TOGETHER, Prepared, Simulation, evaluation, finish, prepare
from icl_lab.runs.table import flatten
from icl_lab.training import TrainingResult, gradient_flow_each

PREPARED_BYTES = 2**30
"""Memory for the objectives of the points that are prepared at a time."""
FLOW_SETTINGS = ("weight_tolerance", "solver", "max_steps")


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a sweep, and how it ended: `status` as in status.json, and the exception if it raised."""

    config: dict[str, Any]
    folder: Path
    status: str = ""
    error: Exception | None = None


def execute_all(configs: Sequence[dict[str, Any]], console: Console | None = None) -> list[Point]:
    """Do every run of a sweep, or find it in the store, and print one table of them all.

    Args:
      configs: the resolved configurations.
      console: where to print; standard output by default.

    Returns:
      The points in the order given, each with its end.

    Raises:
      DeviceError: no device to compute on.
    """
    devices.first()
    points = [Point(config, store.run_folder(config)) for config in configs]
    ends: dict[Path, Point] = {}
    with phase("points of the sweep", len({point.folder for point in points})) as shown:

        def on_finished(point: Point, error: Exception | None = None) -> None:
            status = "failed" if error else records.read_status(point.folder)["status"]
            ends[point.folder] = dataclasses.replace(point, status=status, error=error)
            failed = sum(end.status != "done" for end in ends.values())
            shown.update(len(ends), f"{failed} of them not done" if failed else "")

        different = {point.folder: point for point in points}
        finished: set[Path] = set()
        for folder, point in different.items():
            try:
                if not store.is_finished(folder):
                    continue
                on_finished(point)
            except DamagedRunError as error:
                on_finished(point, error)
            finished.add(folder)
        if len(finished) < len(different):
            for problems in _prepared(list(different.values()), on_finished):
                _train_and_publish(problems, finished, on_finished, console or present.wide_console())
    # What a process left that was killed just after another one had finished its run.
    for root in {point.folder.parent for point in points}:
        store.remove_stale(root)
    ends_in_order = [ends[point.folder] for point in points]
    _print_summary(ends_in_order, finished, console or present.wide_console())
    return ends_in_order


OnFinished = Callable[..., None]
PreparedRuns = list[tuple[Point, Prepared]]
Trained = tuple[list[Point], Prepared, TrainingResult]
"""Points that are one problem, the problem, and where it ended."""


def _prepared(points: list[Point], on_finished: OnFinished) -> Iterator[PreparedRuns]:
    """The points as problems, as many at a time as memory allows; those that describe none have ended."""
    held: PreparedRuns = []
    used = 0
    # Neighbours share what they have in common: an objective of sampled moments is drawn once.
    for point in sorted(points, key=lambda point: (evaluation(point.config), point.config["seed"])):
        like = held[-1][1] if held else None
        try:
            with precision.float64():
                problem = prepare(point.config, like)
        except Exception as error:
            _publish_failure(point, error, on_finished)
            continue
        if like is None or problem.objective is not like.objective:
            used += sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(problem.objective) if not _is_key(leaf))
        held.append((point, problem))
        if used > PREPARED_BYTES:
            yield held
            held, used = [], 0
    if held:
        yield held


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _say_what_has_no_effect(flows: Sequence[PreparedRuns], console: Console) -> None:
    """Name the keys in which points differ that are the same problem."""
    without: set[str] = set()
    for twins in flows:
        first, *others = (_flat(point.config) for point, _ in twins)
        without |= {key for keys in others for key in {*keys, *first} if repr(keys.get(key)) != repr(first.get(key))}
    if without:
        names = ", ".join(f"`{name}`" for name in sorted(without))
        verb = "has" if len(without) == 1 else "have"
        console.print(
            f"{names} {verb} no effect here, since no random number is drawn in training: {sum(map(len, flows))} points are "
            f"{len(flows)} problems, each solved once.",
            highlight=False,
        )


def _question(flow: Prepared) -> str:
    """What a run of a flow computes, as a digest: equal for runs that come out the same, bit for bit."""
    config = flow.config
    digest = hashlib.sha256((evaluation(config) + json.dumps(config["trainer"], sort_keys=True)).encode())
    leaves, structure = jax.tree.flatten((flow.objective.bare, flow.initial))
    digest.update(str(structure).encode())
    for leaf in leaves:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        digest.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
    return digest.hexdigest()


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that make a run what it is, by their dotted names."""
    keys: dict[str, Any] = {}
    flatten({k: v for k, v in config.items() if k not in store.NOT_HASHED}, "", keys)
    return keys


def _train_and_publish(problems: PreparedRuns, finished: set[Path], on_finished: OnFinished, console: Console) -> None:
    groups: dict[str, dict[str, PreparedRuns]] = {}
    descents: list[Point] = []
    for point, problem in problems:
        trainer = point.config["trainer"]
        if trainer["kind"] == "gradient_flow":
            settings = {name: trainer[name] for name in FLOW_SETTINGS}
            same = groups.setdefault(json.dumps(settings), {})
            same.setdefault(_question(problem), []).append((point, problem))
        elif point.folder not in finished:
            descents.append(point)
    _say_what_has_no_effect([twins for same in groups.values() for twins in same.values()], console)
    for point in descents:
        _alone(point, on_finished)
    for settings, same in groups.items():
        flows = list(same.values())
        left = {point.folder: point for twins in flows for point, _ in twins if point.folder not in finished}

        def leave(point: Point, error: Exception | None = None, left: dict[Path, Point] = left) -> None:
            left.pop(point.folder, None)
            on_finished(point, error)

        try:
            _flow(flows, json.loads(settings), finished, leave)
        except Exception:
            # What went wrong together says nothing about which point is to blame.
            for point in list(left.values()):
                _alone(point, on_finished)


def _flow(runs: list[PreparedRuns], settings: dict[str, Any], finished: set[Path], on_finished: OnFinished) -> None:
    """Train flows together, the points of one entry as one, and publish those of one evaluation a few dozen at a time."""
    waiting: dict[str, list[Trained]] = {}
    together = sum(map(len, runs))
    known = {index for index, twins in enumerate(runs) if all(point.folder in finished for point, _ in twins)}
    problems = [(twins[0][1].objective, twins[0][1].initial) for twins in runs]
    left = collections.Counter(evaluation(twins[0][0].config) for twins in runs)
    for index, result in gradient_flow_each(problems, known=known, **settings):
        of = evaluation(runs[index][0][0].config)
        left[of] -= 1
        trained = waiting.setdefault(of, [])
        if isinstance(result, Exception):
            for point, _ in runs[index]:
                _publish_failure(point, result, on_finished)
        else:
            trained.append(([point for point, _ in runs[index]], runs[index][0][1], result))
        # What is complete is kept, whatever happens to the rest.
        if len(trained) == TOGETHER or (trained and not left[of]):
            _publish(waiting.pop(of), together, finished, on_finished)


def _publish(trained: list[Trained], together: int, finished: set[Path], on_finished: OnFinished) -> None:
    points = [point for twins, _, _ in trained for point in twins if point.folder not in finished]
    if not points:
        return
    with precision.float64(), provenance.stopwatch() as watch:
        runs = finish([problem for _, problem, _ in trained], [result for _, _, result in trained])
    for (twins, _, result), run in zip(trained, runs, strict=True):
        made = execute.record(
            (result.seconds + watch.wall / len(runs)) / len(twins),
            watch.compile / len(runs) / len(twins),
            together=together,
        )
        for point in twins:
            if point.folder in finished:
                continue
            execute.publish(
                point.config,
                point.folder,
                lambda _, run=run, made=made: (run, made),
                draw=bool(point.config["analysis"]["figures"]),
            )
            on_finished(point)


def _alone(point: Point, on_finished: OnFinished) -> None:
    """Do one run by itself."""

    def work(figures: Drawing) -> tuple[Simulation, dict[str, Any]]:
        return execute.trained_alone(point.config, store.checkpoint_file(point.folder), figures)

    try:
        execute.publish(point.config, point.folder, work, draw=bool(point.config["analysis"]["figures"]))
    except Exception as error:
        on_finished(point, error)
    else:
        on_finished(point)


def _publish_failure(point: Point, error: Exception, on_finished: OnFinished) -> None:
    def fail(_: Drawing) -> tuple[Simulation, dict[str, Any]]:
        raise error

    with contextlib.suppress(Exception):
        execute.publish(point.config, point.folder, fail, draw=False)
    on_finished(point, error)


def _print_summary(points: list[Point], finished: set[Path], console: Console) -> None:
    """One table of the points, those that failed first: the keys that differ, the verdict, the distance from theory."""
    flat = [_flat(point.config) for point in points]
    every = dict.fromkeys(key for keys in flat for key in keys)
    varying = [key for key in every if len({repr(keys.get(key, "")) for keys in flat}) > 1]
    title = f"{len(points)} points, {sum(point.status == 'done' for point in points)} done"
    before = sum(point.folder in finished and point.error is None for point in points)
    table = Table(title=title + (f"; {before} in the store already" if before else ""))
    for name in (*varying, "verdict", "weight distance", "run folder"):
        table.add_column(escape(name), no_wrap=name == "run folder")
    for point, keys in sorted(zip(points, flat, strict=True), key=lambda pair: pair[0].status == "done"):
        # A key that a point does not have is empty, and so told from one that is null.
        values = [escape(str(keys.get(key, ""))) for key in varying]
        if isinstance(point.error, DamagedRunError):
            table.add_row(*values, "[red]damaged[/]", "", point.folder.name)
            continue
        if point.error is not None:
            kept = store.failed_folder(point.folder)
            table.add_row(*values, "[red]failed[/]", "", kept.name if kept.is_dir() else "(no record)")
            continue
        verdict, theory = records.read_status(point.folder)["verdict"], records.read_metrics(point.folder)["theory"]
        distance = "" if theory is None else f"{float(theory['weight_distance']):.2e}"
        colour = "green" if point.status == "done" else "red"
        table.add_row(*values, f"[{colour}]{escape(verdict)}[/]", distance, point.folder.name)
    console.print(table)
    console.print(f"Run folders: {escape(str(points[0].folder.parent))}", highlight=False, soft_wrap=True)
