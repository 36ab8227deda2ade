"""Which films and landmarks a run was prepared from, so that a later change of them is noticed.

A run keeps the views that it made once. Landmarks that are corrected afterwards would change
nothing, and nobody would be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import sha256_of
from hpc_hipgen.tables import printable, shortlist

if TYPE_CHECKING:
    from hpc_hipgen.config import Experiment
    from hpc_hipgen.radiograph.dataset import FilmFile


def sources(config: Experiment, films: Mapping[str, Iterable[FilmFile]]) -> dict[str, Any]:
    """What `check_unchanged` compares: SHA-256 of each table, names and sizes of its films.

    Args:
        config: the experiment.
        films: by key of `Experiment.film_sets`.
    """
    return {
        key: {
            "table": sha256_of(table),
            "films": {film.name: film.path.stat().st_size for film in films[key]},
        }
        for key, (_, table) in config.film_sets().items()
        if key in films
    }


def check_unchanged(config: Experiment, prepared: Mapping[str, Any]) -> None:
    """Sees that films and landmarks are still those that a run was prepared from.

    What is no longer there is not needed any more, and runs of before `sources` say nothing.

    Args:
        config: the experiment.
        prepared: the marker of `prepare`.

    Raises:
        ConfigError: one line for each set of films that has changed.
    """
    stored = prepared.get("sources", {})
    lines = []
    for key, (folder, table) in config.film_sets().items():
        if not (before := stored.get(key)):
            continue
        changed = []
        if table.is_file() and sha256_of(table) != before["table"]:
            changed.append(printable(table))
        sizes = before["films"].items()
        there = [(folder / name, size) for name, size in sizes if (folder / name).is_file()]
        changed += [printable(path) for path, size in there if path.stat().st_size != size]
        if changed:
            lines.append(
                f"{key}: {shortlist(changed)} has changed since this run was prepared: use another "
                "--run NAME"
            )
    if lines:
        raise ConfigError("\n".join(lines))
