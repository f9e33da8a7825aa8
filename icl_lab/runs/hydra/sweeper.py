"""Hydra's basic sweeper for the points of a sweep in this process: they are composed quickly and done together.

Hydra composes every point twice, a tenth of a second each time. Points that differ in plain values only are one composition,
with the values put in by the function that Hydra puts them in with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from icl_lab.config import compose
from icl_lab.core.errors import InvalidValueError

SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

# Hydra loads its plugins anew when it looks for them, so an import of these classes could give others than it uses.
_classes: dict[str, Any] = Plugins.instance().class_name_to_class
_BasicSweeper: Any = _classes[SWEEPER]


class Points(_BasicSweeper):
    """Hydra's basic sweeper; with Hydra's basic launcher it hands the configurations of all points to `do` at once."""

    do: ClassVar[Callable[[list[DictConfig]], Any] | None] = None

    def sweep(self, arguments: list[str]) -> Any:
        if not isinstance(self.launcher, _classes[LAUNCHER]) or Points.do is None:
            return super().sweep(arguments)
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        for override in overrides:
            if override.is_sweep_override() and not list(override.sweep_string_iterator()):
                raise InvalidValueError(f"the sweep has no points, since `{override.input_line}` holds no value.")
        batches = self.split_arguments(overrides, None)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        composer = _Composer(self.hydra_context.config_loader, self.config)
        return Points.do([composer.compose(overrides) for overrides in batches[0]])


class _Composer:
    def __init__(self, loader: compose.Loader, master: DictConfig):
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a point, as Hydra would hand it to the job."""
        parsed = self.parser.parse_overrides(list(overrides))
        values = [override for override in parsed if self.loader.is_value(override)]
        choices = tuple(text for text, override in zip(overrides, parsed, strict=True) if not self.loader.is_value(override))
        if choices not in self.composed:
            whole = self.loader.load_sweep_config(self.master, list(choices))
            # What `${hydra:...}` stands for while the point is resolved.
            HydraConfig.instance().set_config(whole)
            with read_write(whole), open_dict(whole):
                del whole["hydra"]
            self.composed[choices] = whole
        config = copy.deepcopy(self.composed[choices])
        for override in values:
            compose.put(config, override)
        return config


def register() -> None:
    """Let Hydra make this sweeper where it would make its own basic one; it takes plugins from its own packages only."""
    _classes[SWEEPER] = Points
