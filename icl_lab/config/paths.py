"""Where the YAML config groups are: the copy shipped inside the wheel, else the `configs/` folder of the checkout."""

from __future__ import annotations

from pathlib import Path

from icl_lab.core.errors import InvalidValueError


def config_dir() -> Path:
    """The absolute folder of the config groups.

    Returns:
      `icl_lab/configs` in an installed wheel (the build puts the groups there), else `configs/` beside the package.

    Raises:
      InvalidValueError: neither holds the primary config `run.yaml`.
    """
    package = Path(__file__).resolve().parent.parent
    candidates = (package / "configs", package.parent / "configs")
    for folder in candidates:
        if (folder / "run.yaml").is_file():
            return folder
    raise InvalidValueError(
        f"No `run.yaml` in {candidates[0]} (shipped copy) or {candidates[1]} (checkout); the installation is "
        "incomplete, so install icl-lab again."
    )
