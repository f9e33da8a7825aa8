"""Running claims: parameters are settled first, each claim runs in its own float64 scope, a claim that raises has failed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from icl_lab import devices, precision
from icl_lab.claims import registry
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Claim
from icl_lab.errors import InvalidValueError
from icl_lab.progress import Phase, phase, seconds_in_words

Entry = dict[str, Any]
Progress = Callable[[int, int, Entry], None]


def run(
    patterns: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    jobs: int = 1,
    on_progress: Progress | None = None,
) -> list[Entry]:
    """One entry (JSON types) for every claim selected, in the registry's order.

    Args:
      patterns: ids or globs; none: every claim.
      overrides: parameter name -> value; each goes to every selected claim that has the parameter.
      jobs: claims that run at the same time, each in a process of its own if more than 1.
      on_progress: called with (number done, number in all, entry) whenever a claim has run.

    Returns:
      dicts with the keys id, paper, statement, source, parameters, checks, passed, seconds, device, precision, and `reason`
      (the exception) for a claim that raised. A claim passes if it has checks and all of them pass.

    Raises:
      InvalidValueError: a pattern without a match, an override that no selected claim accepts, or a value out of range.
      AssumptionError: a parameter outside a theorem's assumption.
      DeviceError: no device to compute on. Nothing has run in any of these cases.
    """
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise InvalidValueError(f"`jobs` must be an integer >= 1; got {jobs!r}. It is a number of processes.")
    work = plan(registry.select(patterns), overrides or {})
    devices.first()
    entries: dict[str, Entry] = {}
    with phase("claims", len(work)) as shown:

        def finished(entry: Entry) -> None:
            entries[entry["id"]] = entry
            shown.update(len(entries))
            if on_progress is not None:
                on_progress(len(entries), len(work), entry)

        if jobs == 1 or len(work) == 1:
            for one, parameters in work:
                finished(run_claim(one, parameters))
        else:
            elsewhere = _Elsewhere([one.id for one, _ in work], jobs)

            def ended(entry: Entry) -> None:
                elsewhere.ended(entry["id"])
                finished(entry)

            with elsewhere:
                _run_in_processes(work, jobs, ended)
    return [entries[one.id] for one, _ in work]


def plan(claims: Sequence[Claim], overrides: Mapping[str, Any]) -> list[tuple[Claim, dict[str, Any]]]:
    """Every claim with its resolved parameters.

    Raises: as `run`.
    """
    accepted = list(dict.fromkeys(name for one in claims for name in one.parameters))
    unknown = sorted(set(overrides) - set(accepted))
    if unknown:
        raise InvalidValueError(
            f"no selected claim has a parameter {', '.join(map(repr, unknown))}; accepted are {', '.join(accepted)}."
        )
    return [(one, one.resolve({name: value for name, value in overrides.items() if name in one.parameters})) for one in claims]


def run_claim(one: Claim, parameters: Mapping[str, Any]) -> Entry:
    """The entry of one claim at resolved parameters; an exception is a failure whose reason is recorded."""
    start, checks, reason = time.perf_counter(), [], None
    try:
        with precision.float64(), phase(one.id):
            checks = [check.to_json() for check in one.run(**parameters)]
            if parameters == one.resolve():
                checks += [check.to_json() for setting in one.also for check in _at(one, setting)]
        if not checks:
            reason = "the claim made no check, which proves nothing"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    return _entry(one, parameters, checks, time.perf_counter() - start, reason)


def _at(one: Claim, setting: Mapping[str, Any]) -> list[Check]:
    """The checks of a claim at one of its further settings, which their names begin with."""
    where = ",".join(f"{name}={value}" for name, value in setting.items())
    return [dataclasses.replace(check, name=f"{where}: {check.name}") for check in one.run(**one.resolve(setting))]


def all_passed(entries: Iterable[Entry]) -> bool:
    """Whether every claim of a verification passed (exit status 0; else 1)."""
    return all(entry["passed"] for entry in entries)


def _run_in_processes(work: Sequence[tuple[Claim, dict[str, Any]]], jobs: int, finished: Callable[[Entry], None]) -> None:
    # Spawned, not forked: JAX has threads, and a forked child can deadlock on their locks.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max_workers=min(jobs, len(work)), mp_context=context) as pool:
        futures = {pool.submit(_run_by_id, one.id, parameters): (one, parameters) for one, parameters in work}
        for future in concurrent.futures.as_completed(futures):
            try:
                entry = future.result()
            except concurrent.futures.BrokenExecutor as error:  # a process died (killed, or out of memory)
                entry = _entry(*futures[future], [], 0.0, f"{type(error).__name__}: {error}")
            finished(entry)


class _Elsewhere(Phase):
    """The claims that other processes are running: those begin them in order, so it is the first few that have not ended."""

    def __init__(self, ids: Sequence[str], jobs: int):
        super().__init__("elsewhere")
        self.jobs, self.since_of = jobs, dict.fromkeys(ids, self.since)

    def ended(self, id: str) -> None:
        """Take note of the end of a claim, with which the next one begins."""
        running = list(self.since_of)[: self.jobs]
        del self.since_of[id]
        for begun in list(self.since_of)[: self.jobs]:
            if begun not in running:
                self.since_of[begun] = time.monotonic()

    def words(self, now: float) -> str:
        running = list(self.since_of.items())[: self.jobs]
        return "; ".join(f"{id}, {seconds_in_words(now - since)}" for id, since in running)


def _run_by_id(id: str, parameters: dict[str, Any]) -> Entry:
    return run_claim(registry.all_claims()[id], parameters)


def _entry(one: Claim, parameters: Mapping[str, Any], checks: list[Entry], seconds: float, reason: str | None) -> Entry:
    device = devices.first()
    entry = {
        "id": one.id,
        "paper": one.paper,
        "statement": one.statement,
        "source": one.source,
        "parameters": dict(parameters),
        "checks": checks,
        "passed": reason is None and all(check["passed"] for check in checks),
        "seconds": seconds,
        "device": f"{device.platform} ({device.device_kind})",
        "precision": "float64",
    }
    return entry if reason is None else entry | {"reason": reason}
