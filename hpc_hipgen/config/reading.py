"""Reading settings: YAML, overrides of the command line, one line for each problem."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from hpc_hipgen.config.base import ConfigError, Section
from hpc_hipgen.config.experiment import Experiment


def load_experiment(path: Path | str, overrides: list[str] | None = None) -> Experiment:
    """Reads an experiment file, applies `key.sub=value` overrides and checks the settings.

    The files that they name need not be there (see `check_inputs`). Values of overrides are YAML
    (`llcm.guidance=[2,6]`, `autoencoder.pretrained=null`).

    Raises:
        ConfigError: one problem a line, each with its key.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; the experiments are in configs/") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    return parse_experiment(settings_tree(tree, overrides or []), str(path))


def parse_experiment(tree: dict[str, Any], origin: str) -> Experiment:
    """Checks a tree of plain values; `origin` is named in the message of ConfigError."""
    return parse_settings(Experiment, tree, origin)


Settings = TypeVar("Settings", bound=Section)


def parse_settings(kind: type[Settings], tree: dict[str, Any], origin: str) -> Settings:
    """Checks a tree of plain values against a group of settings.

    Raises:
        ConfigError: one problem a line, each with `origin` and its key.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(origin, e) for e in error.errors())) from None


def settings_tree(tree: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The tree changed by `key.sub=value` overrides, values in YAML; raises ConfigError."""
    for override in overrides:
        _apply_override(tree, override)
    return tree


def _problem(origin: str, error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{origin}: unknown key '{key}'"
    if error["type"] == "missing":
        return f"{origin}: key '{key}' is missing"
    shown = "" if error["type"] == "value_error" else f" (got {error['input']!r})"
    return f"{origin}: {key + ': ' if key else ''}{message}{shown}"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}': expected key.sub=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"'{override}': the value is not valid YAML") from None
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"'{override}': '{parent}' is not a section")
    node[last] = value
