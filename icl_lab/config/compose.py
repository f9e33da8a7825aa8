"""How Hydra composes a configuration here: what it does itself, and four things that it does otherwise.

- A file is read by YAML 1.2, and what is wrong with it is said with the file and the line.
- A value replaces a value: Hydra would merge the mapping `{power_law: 1}` into `{condition_number: 4}`.
- 1e5 is an integer where one is wanted, and only true and false are truth values.
- While a sweep over the choices of a group is launched, values are left to its points: a key of `trainer=adam` is none of the
  default trainer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import BooleanNode, Container, DictConfig, IntegerNode, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from icl_lab.config import schema, yaml12
from icl_lab.config.choice import choose
from icl_lab.core.errors import InvalidValueError

KEYS = tuple(field.name for field in fields(schema.Run))
"""The top-level keys of a run."""


def register() -> None:
    """Let Hydra compose as this module says, with the schemas; in every process that calls it, as often as one likes."""
    schema.register()
    Plugins.instance()  # which registers Hydra's own source of files
    SourcesRegistry.instance().types[Files.scheme()] = Files
    hydra._internal.hydra.ConfigLoaderImpl = Loader  # pyright: ignore[reportPrivateImportUsage]


class Files(FileConfigSource):
    """Configuration files in YAML 1.2."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path, self._normalize_file_name(config_path))
        if not path.is_file():
            return super().load_config(config_path)
        try:
            text = path.read_text(encoding="utf-8")
            header = ConfigSource._get_header_dict(text)
            content = yaml12.load(text)
        except yaml.YAMLError as error:
            raise InvalidValueError(f"{path}, {yaml12.problem(error)}.") from None
        except (OSError, ValueError) as error:
            raise InvalidValueError(f"{path} cannot be read as a configuration: {error}.") from None
        if not isinstance(content, dict | None):
            raise InvalidValueError(f"{path} must hold `key: value` lines; got {type(content).__name__} {content!r}.")
        return ConfigResult(
            config=OmegaConf.create(content or {}), path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header
        )


class Loader(ConfigLoaderImpl):
    """Hydra's composer of configurations, with values put in by `merge`."""

    def is_value(self, override: Override) -> bool:
        """Whether an override sets a key of a run that is there, and chooses no file."""
        key = override.key_or_group
        if override.package is not None or override.type is not OverrideType.CHANGE:
            return False
        return key.partition(".")[0] in KEYS and not self._is_choice(override)

    def _is_choice(self, override: Override) -> bool:
        return self.repository.group_exists(override.key_or_group)

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        parsed = OverridesParser.create(config_loader=self).parse_overrides(overrides)
        values = [override for override in parsed if self.is_value(override)]
        places = [text for text, override in zip(overrides, parsed, strict=True) if override.key_or_group == "hydra.searchpath"]
        others = [self._choice(override, places) for override in parsed if not self.is_value(override)]
        config = super()._load_configuration_impl(config_name, others, run_mode, from_shell, validate_sweep_overrides)
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(values, run_mode, from_shell)
        left_to_points = run_mode is RunMode.MULTIRUN and any(
            override.is_sweep_override() and self._is_choice(override) for override in parsed
        )
        for override in values:
            grouped = "." in override.key_or_group
            if not (override.is_sweep_override() or (grouped and left_to_points)):
                put(config, override)
        # Hydra makes its folder below this one before any code of ours sees the configuration.
        if "run_root" in config:
            config.run_root = os.path.expanduser(config.run_root)
        own = [override for override in parsed if not override.is_hydra_override()]
        config.hydra.overrides.task = [override.input_line for override in own]
        names = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=own, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        return config

    def _choice(self, override: Override, places: list[str]) -> str:
        """The text of an override; a name that looks like a number is quoted, and one of a series of runs made known.

        `experiment=NAME` names a series where there is no overlay of that name, so that one is made up which says no more.
        """
        text = override.input_line
        assert text is not None
        value = override.value()
        if override.is_sweep_override() or not self._is_choice(override) or isinstance(value, dict | list):
            return text
        key, _, written = text.partition("=")
        name = value if isinstance(value, str) else written.strip()
        group = override.key_or_group
        if group == "experiment" and name not in self.get_group_options(group, overrides=places):
            schema.check_experiment(name)
            ConfigStore.instance().store(group=group, name=name, node={group: name}, package="_global_")
        return text if isinstance(value, str) else f"{key}='{name}'"

    def _compose_config_from_defaults_list(self, defaults: Any, repo: Any) -> DictConfig:
        config = OmegaConf.create()
        with flag_override(config, "no_deepcopy_set_nodes", True):
            for default in defaults:
                loaded = self._load_single_config(default=default, repo=repo).config
                assert isinstance(loaded, DictConfig)
                try:
                    merge(config, loaded)
                except OmegaConfBaseException as error:
                    raise ConfigCompositionException(f"In '{default.config_path}': {str(error).splitlines()[0]}") from error
        _drop_defaults(config)
        return config


def _drop_defaults(node: Any) -> None:
    """Take out the lists of defaults, which Hydra has marked, at every depth."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    with flag_override(node, ["readonly", "struct"], False):
        if node._get_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS"):
            node._set_flag("HYDRA_REMOVE_TOP_LEVEL_DEFAULTS", None)
            node.pop("defaults", None)
    for _, child in node.items_ex(resolve=False):
        _drop_defaults(child)


def put(config: DictConfig, override: Override) -> None:
    """Put a value of the command line into a composed configuration, in its place.

    Raises:
      InvalidValueError: a truth value that is neither true nor false.
      OmegaConfBaseException: an unknown key, or a value of the wrong type.
    """
    key, value = override.key_or_group, override.value()
    group, _, rest = key.partition(".")
    if "." in rest:
        parent = OmegaConf.select(config, key.rpartition(".")[0])
        # A mapping with a type of its own, such as the gates of a mixer, has any keys; whoever reads it knows which.
        free = isinstance(parent, DictConfig) and parent._metadata.ref_type is not Any
        try:
            with flag_override(parent, "struct", False) if free else contextlib.nullcontext():
                OmegaConf.update(config, key, value)
        except (ValueError, IndexError) as error:
            if isinstance(error, OmegaConfBaseException):
                raise
            raise InvalidValueError(f"there is no entry `{key}` to set to {value!r}.") from None
        return
    merge(config, OmegaConf.create({group: {rest: value} if rest else value}))


def merge(config: DictConfig, loaded: DictConfig) -> None:
    """Merge `loaded` into `config`, groups key by key and every other value as a whole.

    Raises:
      InvalidValueError: a truth value that is neither true nor false.
      OmegaConfBaseException: an unknown key, or a value of the wrong type.
    """
    _make_room(config, loaded, [key for key in KEYS if key not in schema.GROUPS])
    for group in schema.GROUPS:
        old, new = (OmegaConf.select(node, group, throw_on_missing=False) for node in (config, loaded))
        if isinstance(old, DictConfig) and isinstance(new, DictConfig):
            _make_room(old, new, [str(key) for key in new])
    config.merge_with(loaded)


def _make_room(old: DictConfig, new: DictConfig, keys: Sequence[str]) -> None:
    for key in keys:
        before, after = (node._get_node(key, validate_access=False) for node in (old, new))
        if before is None or after is None or OmegaConf.is_missing(new, key) or OmegaConf.is_interpolation(new, key):
            continue
        value = new[key]
        if isinstance(before, Container):
            # Set, not merged: the numbers of a list come into its type, and a mapping into the place of what was there.
            with flag_override(old, ["struct", "readonly"], False), flag_override(new, ["struct", "readonly"], False):
                old[key] = OmegaConf.to_container(value) if isinstance(value, Container) else value
                del new[key]
        elif isinstance(before, IntegerNode) and isinstance(value, float) and value.is_integer():
            new[key] = int(value)
        elif isinstance(before, BooleanNode) and not isinstance(value, bool | None):
            raise InvalidValueError(f"`{new._get_full_key(key)}` must be true or false; got {value!r}.")


def checked(config: DictConfig) -> DictConfig:
    """A composed configuration in which every group has the keys of its kind, with values of their types.

    Raises:
      InvalidValueError: a key that no schema knows, as `+task.foo=1` would add one; a key without a value; a group that is
        none; a kind that belongs to another file of the group.
    """
    _check_names(config, schema.Run)
    groups = {group: _typed_group(config, group) for group in schema.GROUPS}
    config = config.copy()
    for group, node in groups.items():
        config[group] = node
    return config


def _typed_group(config: DictConfig, group: str) -> DictConfig:
    if OmegaConf.is_missing(config, group) or not isinstance(config[group], DictConfig):
        raise InvalidValueError(f"`{group}` must be chosen, as in `{group}=NAME`; nothing with keys of its own stands there.")
    node = config[group]
    if group in schema.KINDS and ("kind" not in node or OmegaConf.is_missing(node, "kind")):
        raise InvalidValueError(f"`{group}.kind` must say what is described: {', '.join(schema.KINDS[group])}.")
    expected = choose(schema.KINDS[group], node, group) if group in schema.KINDS else schema.Analysis
    if OmegaConf.get_type(node) is dict:
        # A file of the user's own without a schema among its defaults.
        _check_names(node, expected)
        typed, node = OmegaConf.structured(expected), node.copy()
        try:
            _make_room(typed, node, [str(key) for key in node])
            typed.merge_with(node)
        except OmegaConfBaseException as error:
            raise InvalidValueError(f"`{group}.{error.full_key}`: {str(error).splitlines()[0].rstrip('.')}.") from None
        node = typed
    elif OmegaConf.get_type(node) is not expected:
        raise InvalidValueError(
            f"`{group}.kind={node.kind}` has other keys than the group that is chosen; choose `{group}={node.kind}`."
        )
    _check_names(node, expected)
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise InvalidValueError(f"`{group}.{missing[0]}` has no value.")
    return node


def _check_names(node: DictConfig, expected: type) -> None:
    assert is_dataclass(expected)
    accepted = {field.name for field in fields(expected)}
    unknown = sorted(str(key) for key in node if key not in accepted)
    if unknown:
        path = node._get_full_key(unknown[0])
        raise InvalidValueError(f"Unknown configuration key `{path}`; accepted here: {', '.join(sorted(accepted))}.")
