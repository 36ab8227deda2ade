"""Reading settings: YAML, overrides of the command line, one line for each problem."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from hpc_hipgen import ROOT
from hpc_hipgen.config.base import ConfigError, Section
from hpc_hipgen.config.experiment import Experiment

SMOKE = ROOT / "configs" / "overrides" / "smoke.yaml"
"""What makes any experiment small enough to be tried within minutes."""

NO_MODELS = ("data", "sampling", "evaluation")
"""Its sections that every experiment of generators has, written out or not."""


def load_experiment(
    path: Path | str, overrides: list[str] | None = None, smoke: bool = False
) -> Experiment:
    """Reads an experiment file, applies `key.sub=value` overrides and checks the settings.

    The files that they name need not be there (see `check_inputs`). Values of overrides are YAML
    (`llcm.guidance=[2,6]`, `autoencoder.pretrained=null`), paths are taken as they stand. `smoke`
    then lays SMOKE over the models that are left, and names the experiment NAME-smoke.

    Raises:
        ConfigError: one problem a line, each with its key.
    """
    tree = settings_tree(_read_tree(Path(path)), overrides or [], Experiment)
    if smoke:
        over = _read_tree(SMOKE)
        common = NO_MODELS if tree.get("ruler") else ()
        given = tree
        tree = merged(tree, {k: v for k, v in over.items() if k in common or tree.get(k)})
        for override in overrides or []:
            key = override.partition("=")[0]
            if (now := _value(tree, key)) != _value(given, key):
                print(f"'{override}': --smoke has {now} instead", file=sys.stderr)
        tree["name"] = f"{tree.get('name')}-smoke"
    return parse_settings(Experiment, tree, str(path), overrides or [])


def _value(tree: Any, key: str) -> Any:
    """What a tree has at `key.sub`; None where that is nothing."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""That of libyaml is ten times as fast; not every build of PyYAML has it."""


class _Loader(_FastLoader):
    """Dates and times of day are text: YAML 1.1 takes 1:30 for 90, and stops at 2024-13-45."""

    def resolve(self, kind: type, value: str, implicit: Any) -> str:
        tag = str(super().resolve(kind, value, implicit))
        timed = tag.endswith((":int", ":float")) and ":" in value
        return "tag:yaml.org,2002:str" if timed or tag.endswith(":timestamp") else tag


def _check_keys(node: yaml.Node, above: tuple[yaml.Node, ...] = ()) -> None:
    """Refuses a key that is written twice, of which YAML takes the last without a word."""
    seen = set()
    for part in node.value if isinstance(node, yaml.CollectionNode) and node not in above else ():
        if isinstance(part, tuple):
            key, part = part
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        _check_keys(part, (*above, node))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; raises ConfigError when it cannot be read."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node)
        return loader.construct_document(node)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _read_tree(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ConfigError(f"{path}: no such file; the experiments are in configs/")
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    return tree


def merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The tree with the values of `over`; mappings are merged, anything else replaced."""
    both = dict(tree)
    for key, value in over.items():
        below = both.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            value = merged(below, value)
        both[key] = value
    return both


def parse_experiment(tree: dict[str, Any], origin: str) -> Experiment:
    """Checks a tree of plain values; `origin` is named in the message of ConfigError."""
    return parse_settings(Experiment, tree, origin)


Settings = TypeVar("Settings", bound=Section)


def parse_settings(
    kind: type[Settings], tree: dict[str, Any], origin: str, overrides: Sequence[str] = ()
) -> Settings:
    """Checks a tree of plain values against a group of settings.

    Raises:
        ConfigError: one problem a line, each with its key and where that came from: the one of
            `overrides`, which are in the tree already, or else `origin`.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        found = [_problem(e) for e in _told_once(error.errors())]
        lines = [f"{_origin(key, overrides, origin)}: {text}" for key, text in found]
        raise ConfigError("\n".join(lines)) from None


def _told_once(errors: Sequence[Any]) -> list[Any]:
    """Without what follows from others: a list whose values are wrong is called too short, too."""
    places = [error["loc"] for error in errors]

    def follows(error: Any) -> bool:
        loc = error["loc"]
        within = (place != loc and place[: len(loc)] == loc for place in places)
        return error["type"] == "too_short" and any(within)

    return [error for error in errors if not follows(error)]


def _origin(key: str, overrides: Sequence[str], origin: str) -> str:
    """The last override that set `key` or a section that it lies in; else `origin`.

    Of a section that does not fit together, also the overrides within it.
    """
    for override in reversed(overrides):
        given = override.partition("=")[0]
        if key == given or key.startswith(given + "."):
            return f"'{override}'"
    within = [f"'{override}'" for override in overrides if override.startswith(f"{key}.")]
    return f"{origin} with {' '.join(within)}" if key and within else origin


def settings_tree(
    tree: dict[str, Any], overrides: Iterable[str], kind: type[Section] = Section
) -> dict[str, Any]:
    """A tree like `tree`, changed by `key.sub=value` overrides; values are YAML.

    But for the paths among the settings of `kind`, which are taken as they stand: a folder may be
    named `films #2`, `2024` or `2024: clinic`. What aliases of YAML share is changed only where
    the key says.

    Raises:
        ConfigError: when an override is none.
    """
    changed = _unshared(tree)
    for override in overrides:
        _apply_override(changed, override, kind)
    return changed


def _unshared(value: Any) -> Any:
    """The same value with mappings and lists of its own in every place."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _problem(error: Any) -> tuple[str, str]:
    """The key of a problem, and what is said about it."""
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return key, f"unknown key '{key}'"
    if error["type"] == "missing":
        return key, f"key '{key}' is missing"
    shown = "" if error["type"] == "value_error" else f" (got {error['input']!r})"
    # checks of a whole section name the key themselves
    named = not key or message.startswith(f"{key}.")
    text = f"{'' if named else key + ': '}{message}{shown}"
    return text.partition(":")[0], text


_NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML says that there is no value."""


def _is_path(kind: type[Section], key: str) -> bool:
    """Whether a key of these settings takes a path."""
    kinds: tuple[Any, ...] = (kind,)
    for part in key.split("."):
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
        field = sections[0].model_fields.get(part) if sections else None
        if field is None:
            return False
        kinds = get_args(field.annotation) or (field.annotation,)
    return Path in kinds


def _apply_override(tree: dict[str, Any], override: str, kind: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}': expected key.sub=value")
    try:
        as_it_stands = _is_path(kind, key) and text.strip() not in _NOTHING
        value = text if as_it_stands else yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"'{override}': the value is not valid YAML") from None
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"'{override}': '{parent}' is not a section")
    node[last] = value
