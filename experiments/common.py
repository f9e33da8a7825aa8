"""What the experiments share: an output folder, in the house style, that says what it was made with."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from icl_lab.core import precision
from icl_lab.report.style import house_style


@contextlib.contextmanager
def figures(folder: Path) -> Iterator[Path]:
    """The folder, made for the figures that are drawn inside the block in the house style, and named on the terminal."""
    folder.mkdir(parents=True, exist_ok=True)
    with house_style():
        yield folder
    print(f"Figures and their numbers: {folder}")


@contextlib.contextmanager
def configured_figures(config: DictConfig) -> Iterator[Path]:
    """The same in double precision, with the configuration that names the folder beside the figures."""
    with figures(Path(config.output)) as folder, precision.float64():
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
        yield folder


def folder_argument(paper: str, description: str) -> Path:
    """The output folder of the command line, `-o`; by default one named after the paper."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("figures") / paper)
    return parser.parse_args().output
