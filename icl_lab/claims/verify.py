"""Running claims: parameters are settled first, each claim runs in its own float64 scope, a claim that raises has failed."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from icl_lab.claims import convergence, registry, workers
from icl_lab.claims.check import Check
from icl_lab.claims.claim import Claim
from icl_lab.claims.setting import Setting
from icl_lab.core import devices, precision
from icl_lab.core.errors import IclLabError, InvalidValueError, in_words, mistake_in
from icl_lab.core.progress import phase

Entry = dict[str, Any]
PASSED, FAILED, NOT_CONVERGED, REFUSED = "passed", "failed", "not_converged", "refused"
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
      dicts with the keys id, paper, statement, source, status, parameters, checks, passed, verdict, seconds, device and
      precision. A claim has `passed` (verdict "passed") if it has checks and all of them pass, on flows that came to their
      limits. It is "not_converged" if one of its flows did not, and "refused" if the parameters ask for what cannot be
      computed, both of which test nothing, and else "failed". `reason` says which flow, or what the claim raised. `remark` is
      there if a claim ran in this process although it was to have one of its own.

    Raises:
      InvalidValueError: a pattern that selects nothing, an override that no selected claim accepts, or a value out of range.
      AssumptionError: a parameter outside a theorem's assumption.
      DeviceError: no device to compute on. Nothing has run in any of these cases.

    Examples:
      >>> from icl_lab.claims import verify
      >>> (entry,) = verify.run(["zhang2023.setup"], {"d": 3, "N": 5})
      >>> entry["verdict"], [check["passed"] for check in entry["checks"]]
      ('passed', [True, True, True, True, True])
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
            for one, setting in work:
                finished(run_claim(one, setting))
        else:

            def lost(task: workers.Task, how: str) -> None:
                finished(_entry(*task, [], 0.0, FAILED, how))

            for one, setting in workers.run_each(work, jobs, run_claim, finished, lost):
                remark = f"ran in the calling process, since only that one has {_home(one)}"
                finished(run_claim(one, setting) | {"remark": remark})
    return [entries[one.id] for one, _ in work]


def plan(claims: Sequence[Claim], overrides: Mapping[str, Any]) -> list[tuple[Claim, Setting]]:
    """Every claim with its setting.

    Raises: as `run`.
    """
    accepted = list(dict.fromkeys(name for one in claims for name in one.parameters))
    unknown = sorted(set(overrides) - set(accepted))
    if unknown:
        raise InvalidValueError(
            f"no selected claim has a parameter {', '.join(map(repr, unknown))}; accepted are {', '.join(accepted)}."
        )
    for name in overrides:
        meant: dict[str, list[str]] = {}
        for one in claims:
            if name in one.parameters:
                meant.setdefault(one.parameters[name].symbol, []).append(one.id)
        if len(meant) > 1:
            senses = "; ".join(f"{symbol or 'unnamed'} ({_some(ids)})" for symbol, ids in meant.items())
            raise InvalidValueError(
                f"`{name}` stands for several things in the selected claims: {senses}. One value for all would mean nothing; "
                "select claims in which it stands for one."
            )
    return [(one, one.resolve({name: value for name, value in overrides.items() if name in one.parameters})) for one in claims]


def _some(ids: Sequence[str]) -> str:
    """The first of a list of claims, and how many more there are."""
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"


def run_claim(one: Claim, setting: Setting) -> Entry:
    """The entry of one claim at a setting; an exception is a failure whose reason is recorded."""
    start, checks, reason, refused = time.perf_counter(), [], None, False
    with precision.float64(), convergence.watched() as unfinished:
        try:
            with phase(one.id):
                checks = [check.to_json() for check in one.run(setting)]
                if setting.to_json() == one.resolve().to_json():
                    checks += [check.to_json() for extra in one.extra_settings for check in _at(one, extra)]
            if not checks:
                reason = "the claim made no check, which proves nothing"
        except Exception as error:
            reason = in_words(error)
            refused = isinstance(mistake_in(error), IclLabError)
            if not refused:
                where = traceback.extract_tb(error.__traceback__)[-1]
                reason += f" ({where.filename}:{where.lineno})"
    if unfinished:
        verdict, reason = NOT_CONVERGED, " ".join(dict.fromkeys(unfinished))
    elif refused:
        verdict = REFUSED
    else:
        verdict = PASSED if reason is None and all(check["passed"] for check in checks) else FAILED
    return _entry(one, setting, checks, time.perf_counter() - start, verdict, reason)


def _at(one: Claim, setting: Mapping[str, Any]) -> list[Check]:
    """The checks of a claim at one of its further settings, which their names begin with."""
    where = ",".join(f"{name}={value}" for name, value in setting.items())
    return [dataclasses.replace(check, name=f"{where}: {check.name}") for check in one.run(one.resolve(setting))]


def all_passed(entries: Iterable[Entry]) -> bool:
    """Whether every claim of a verification passed (exit status 0; else 1)."""
    return all(entry["passed"] for entry in entries)


def _home(one: Claim) -> str:
    """Where a claim is defined, in words."""
    module = one.run.__module__
    return f"what `{module}` defined as it ran" if module else "the code that defines it"


def _entry(one: Claim, setting: Setting, checks: list[Entry], seconds: float, verdict: str, reason: str | None) -> Entry:
    device = devices.first()
    entry = {
        "id": one.id,
        "paper": one.source.paper,
        "statement": one.statement,
        "source": one.source.item,
        "status": one.source.status,
        "parameters": setting.to_json(),
        "checks": checks,
        "passed": verdict == PASSED,
        "verdict": verdict,
        "seconds": seconds,
        "device": f"{device.platform} ({device.device_kind})",
        "precision": "float64",
    }
    return entry if reason is None else entry | {"reason": reason}
