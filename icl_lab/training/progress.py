"""How training says how far it is: one `Report` a chunk of steps, shown as the detail of a phase."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from icl_lab.core.progress import display, phase

Report = Callable[[float, int, float, float], None]
"""Called with (time, steps, loss, gradient norm)."""


@contextlib.contextmanager
def progress_reporter(enabled: bool, label: str = "gradient flow", total: int | None = None) -> Iterator[Report]:
    """A phase called `label`, and the `Report` that says where in it training is.

    Args:
      enabled: show it on stderr; False leaves that to the caller, who may show the phases of more than this training.
      label: what is being run.
      total: number of steps, for a bar.
    """
    with display(label, enabled), phase(label, total) as shown:

        def report(flow_time: float, steps: int, loss: float, gradient_norm: float) -> None:
            numbers = f"loss = {loss:.6g}"
            if total is None:
                numbers = f"t = {flow_time:.4g}, {numbers}, |grad| = {gradient_norm:.2g}"
            shown.update(steps, detail=numbers)

        yield report
