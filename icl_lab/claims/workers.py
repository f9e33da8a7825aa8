"""Claims in processes of their own: started anew after a few claims, lost one at a time, gone with the process that asked.

A task is a claim's module, id and the values of its setting; a worker imports the module and looks the claim up. It gives back
a claim that is not to be had that way (of a notebook, of `__main__`, made by `exec`), and the caller runs it.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from icl_lab.claims import registry
from icl_lab.claims.claim import Claim
from icl_lab.claims.setting import Setting
from icl_lab.core.errors import InvalidValueError
from icl_lab.core.progress import Phase, seconds_in_words

Task = tuple[Claim, Setting]
Entry = dict[str, Any]
Runner = Callable[[Claim, Setting], Entry]

CLAIMS_PER_WORKER = 12
"""A worker's compiled programs take about 0.1 GB a claim, and leave with it."""


class _Worker:
    """A process, its end of the line, the task it is at, and how many claims it has taken."""

    def __init__(self, run: Runner) -> None:
        # Spawned, not forked: JAX has threads, and a forked child can deadlock on their locks.
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, run), daemon=True)
        self.task: Task | None = None
        self.taken, self.since = 0, time.monotonic()
        with _without_interrupts():
            self.process.start()
        theirs.close()

    def take(self, task: Task) -> None:
        self.task, self.taken, self.since = task, self.taken + 1, time.monotonic()
        one, setting = task
        with contextlib.suppress(OSError):  # it has just died, as its line is about to say
            self.line.send((one.run.__module__, one.run.__qualname__, one.id, setting.to_json()))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.line.close()


class _Elsewhere(Phase):
    """The claims that workers are at, and for how long."""

    def __init__(self, workers: Mapping[Any, _Worker]) -> None:
        super().__init__("elsewhere")
        self.workers = workers

    def words(self, now: float) -> str:
        at = [(worker.task[0].id, worker.since) for worker in tuple(self.workers.values()) if worker.task is not None]
        return "; ".join(f"{id}, {seconds_in_words(now - since)}" for id, since in at) or "starting processes"


def run_each(
    work: Iterable[Task], jobs: int, run: Runner, finished: Callable[[Entry], None], lost: Callable[[Task, str], None]
) -> list[Task]:
    """Run claims in `jobs` processes.

    Args:
      work: the claims and their settings.
      jobs: how many processes at a time.
      run: gives the entry of a claim; a function of a module.
      finished: called with every entry, in the order in which claims end.
      lost: called with a task whose process died, and with how it did.

    Returns:
      The tasks that no worker could be given.
    """
    here: list[Task] = []
    waiting: list[Task] = []
    for task in work:
        (waiting if _may_be_sent(task) else here).append(task)
    waiting.reverse()
    workers: dict[Any, _Worker] = {}
    with _Elsewhere(workers):
        try:
            while waiting or workers:
                while len(workers) < jobs and sum(worker.task is None for worker in workers.values()) < len(waiting):
                    worker = _Worker(run)
                    workers[worker.line] = worker
                for line in wait(list(workers)):
                    worker = workers[line]
                    try:
                        answer: Entry | str | None = worker.line.recv()
                    except (EOFError, OSError):  # it died: killed, or out of memory
                        worker.process.join()
                        how = _how_it_died(worker.process.exitcode)
                        if worker.task is None:
                            raise InvalidValueError(
                                f"`jobs` must be 1 here, since a process that was to run claims {how} as it began. A script "
                                "that asks for more must do so under `if __name__ == '__main__':`."
                            ) from None
                        lost(worker.task, f"the process that ran the claim {how}")
                        workers.pop(line).end()
                        continue
                    if isinstance(answer, dict):
                        finished(answer)
                    elif worker.task is not None:  # else it says that it is ready
                        here.append(worker.task)
                    if waiting and worker.taken < CLAIMS_PER_WORKER:
                        worker.take(waiting.pop())
                    else:
                        workers.pop(line).end()
        finally:
            for worker in workers.values():
                worker.end()
    return here


def _may_be_sent(task: Task) -> bool:
    """Whether a worker could find the claim, as far as this process can tell."""
    one, setting = task
    # A worker has a `__main__` of its own, which holds what the script of this process says and not what happened in it.
    if one.run.__module__ in (None, "__main__", "__mp_main__", "builtins"):
        return False
    try:
        pickle.dumps(setting.to_json())
    except (pickle.PicklingError, TypeError, AttributeError):
        return False
    return True


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}, perhaps for want of memory"
    return f"ended with status {code}"


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started within the block never sees an interrupt from the keyboard, which is its parent's to handle."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(line: Connection, run: Runner) -> None:
    """A worker's life: claims, one after the other, until its parent ends it or is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    line.send("ready")
    while True:
        try:
            module, name, id, values = line.recv()
        except EOFError:
            os._exit(0)
        one = _found(module, name, id)
        line.send(None if one is None else run(one, one.setting(**values)))


def _found(module: str, name: str, id: str) -> Claim | None:
    with contextlib.suppress(Exception):  # a module made by hand, or one that only its own program can import
        importlib.import_module(module)
    one = registry.all_claims().get(id)
    same = one is not None and (one.run.__module__, one.run.__qualname__) == (module, name)
    return one if same else None
