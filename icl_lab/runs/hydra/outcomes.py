"""How the jobs of a sweep ended, told across processes by a file in the log folder of each job.

Hydra hands back the first exception of a sweep and no more, and launchers run jobs in processes or on machines of their own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from icl_lab.runs import records

FILE = "outcome.json"


@dataclasses.dataclass(frozen=True)
class JobEnd:
    """The end of one job.

    Attributes:
      status: its exit status.
      error: why it failed, empty if it did not.
    """

    status: int
    error: str = ""


class Outcomes(Callback):
    """Writes the `JobEnd` that a job returns into its log folder, wherever the job runs."""

    folder: ClassVar[Path | None] = None
    """The log folder of the sweep that this process launched last."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Outcomes.folder = Path(config.hydra.sweep.dir).absolute()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        outcome = job_return._return_value  # the property raises what the job raised
        if isinstance(outcome, JobEnd):
            content = {**dataclasses.asdict(outcome), "overrides": list(job_return.overrides or [])}
            records.write_json(Path(config.hydra.runtime.output_dir) / FILE, content)


def failures(folder: Path) -> list[dict[str, Any]]:
    """The jobs of a sweep that did not end well, by their number: `job`, `status`, `error` and `overrides`."""
    found = [{"job": path.parent.name, **records.read_json(path)} for path in sorted(folder.rglob(FILE))]
    return [outcome for outcome in found if outcome["status"]]
