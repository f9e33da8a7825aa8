"""The look of every figure, and the saving of a figure with its numbers beside it."""

from __future__ import annotations

import contextlib
import csv
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from icl_lab.core.typing import Array


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """The package's matplotlib style, for the figures made and saved inside the block; a user's own settings stay out of it."""
    with matplotlib.style.context(Path(__file__).with_name("icl_lab.mplstyle"), after_reset=True):
        yield


def save(figure: Figure, path: Path, caption: str, numbers: Mapping[str, Array | Sequence[float | int]]) -> None:
    """Write a figure with its caption below it to `path`, and its numbers to the .csv file of the same name.

    Args:
      figure: the figure.
      path: image file; its ending chooses the format.
      caption: what to see in it.
      numbers: columns by name; matrices are written row after row, shorter columns end early.
    """
    figure.supxlabel(textwrap.fill(caption, 95), fontsize="small", x=0.02, ha="left")
    # The report page reads the caption from a .png as the text for those who do not see it.
    figure.savefig(path, metadata={"Description": caption} if path.suffix == ".png" else None)
    columns = {name: np.ravel(np.asarray(column)) for name, column in numbers.items()}
    rows = max(map(len, columns.values()))
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i in range(rows):
            writer.writerow([repr(column[i].item()) if i < len(column) else "" for column in columns.values()])
