"""Reads the films that an experiment names, and notices when they change afterwards.

A run keeps the views that it made once. Landmarks that are corrected afterwards would change
nothing, and nobody would be told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import read_json, sha256_of, write_atomic
from hpc_hipgen.tables import printable, shortlist

if TYPE_CHECKING:
    from hpc_hipgen.config import Experiment, LabRuler
    from hpc_hipgen.radiograph.film_set import Film, FilmFile
    from hpc_hipgen.run import Run

_KEPT = "sources.json"


def sources(config: Experiment, films: Mapping[str, Iterable[Film]]) -> dict[str, Any]:
    """What `check_prepared` compares: SHA-256 of each table, names and sizes of its films.

    Args:
        config: the experiment.
        films: by key of `Experiment.film_sets`.
    """
    from hpc_hipgen.radiograph.film_set import FilmFile

    return {
        key: {
            "table": sha256_of(table),
            "films": {
                film.name: film.path.stat().st_size
                for film in films[key]
                if isinstance(film, FilmFile)
            },
        }
        for key, (_, table) in config.film_sets().items()
        if key in films
    }


def keep_sources(run: Run, found: Mapping[str, Any]) -> None:
    """Keeps what `sources` found apart from the marker of `prepare`, which may be lost."""
    run.path("provenance").mkdir(exist_ok=True)
    write_atomic(run.path("provenance", _KEPT), json.dumps(found, indent=1))


def check_prepared(run: Run) -> None:
    """Sees that films and landmarks are still those that a run was prepared from.

    Also where it has models, and its marker is gone: `prepare` would deal the dogs anew then, and
    test a model on films that it was trained on. What is no longer there, or not for this user, is
    not needed any more, and runs of before `sources` say nothing.

    Raises:
        ConfigError: one line for each set of films that has changed.
    """
    prepared, kept = run.done("prepare"), run.path("provenance", _KEPT)
    trained = any(run.path("stages").glob("train-*.json"))
    if prepared is None and trained and kept.is_file():
        prepared = {"sources": read_json(kept)}
    stored = (prepared or {}).get("sources", {})
    lines = []
    for key, (folder, table) in run.config.film_sets().items():
        if not (before := stored.get(key)):
            continue
        changed = []
        if os.access(table, os.R_OK) and sha256_of(table) != before["table"]:
            changed.append(printable(table))
        sizes = before["films"].items()
        there = [(folder / name, size) for name, size in sizes if os.path.isfile(folder / name)]
        changed += [printable(path) for path, size in there if path.stat().st_size != size]
        if changed:
            lines.append(
                f"{key}: {shortlist(changed)} has changed since this run was prepared: put back "
                "what it was prepared from to go on with it, or use another --run NAME"
            )
    if lines:
        raise ConfigError("\n".join(lines))


def _masking(config: Experiment) -> dict[str, bool]:
    return {"masked": config.data.deidentify, "keep_markers": config.data.keep_markers}


def lab_films(config: Experiment, lab: LabRuler) -> tuple[list[FilmFile], dict[str, int]]:
    """The films that a lab's ruler learns from, all validated, and the fold of each dog.

    Splits that the landmark table names are of no account here.

    Raises:
        FilmErrors: all that is wrong with them.
        ValueError: for fewer dogs than folds, or no folder.
    """
    from hpc_hipgen.radiograph.film_set import film_files
    from hpc_hipgen.radiograph.lab_films import dog_folds

    if lab.films is None:
        raise ValueError("lab_ruler.films: a folder of films with landmarks is needed")
    # a ruler has no captions: the worst hips are worth learning from too
    options = _masking(config) | {"captioned": False}
    films = film_files(lab.films, lab.landmarks, {"train": 1}, config.seed, **options)
    return films, dog_folds([film.dog for film in films], lab.folds, config.seed)


def read_films(config: Experiment) -> tuple[list[Film], list[Film]]:
    """The films of the data set, and the real films to measure, all validated.

    Raises:
        FilmErrors: all that is wrong with either.
    """
    from hpc_hipgen.radiograph.film_set import film_files, phantom_films
    from hpc_hipgen.radiograph.films import FilmErrors

    data, evaluation = config.data, config.evaluation
    masking = _masking(config)
    counts = {"train": data.train, "validation": data.validation, "test": data.test}
    films: list[Film] = []
    measured: list[Film] = []
    problems: list[str] = []
    try:
        if data.source == "films":
            assert data.films, "the configuration says so"
            films += film_files(data.films, data.landmarks, counts, config.seed, **masking)
        else:
            films += phantom_films(config.seed, counts, data.resolution, data.even_angles)
    except FilmErrors as error:
        problems += error.lines
    try:
        if evaluation.films:
            found = film_files(
                evaluation.films, evaluation.landmarks, {"test": 1}, config.seed, **masking
            )
            # whatever split the table puts them in: here they are only measured
            measured += [replace(film, split="test") for film in found]
    except FilmErrors as error:
        problems += error.lines
    if not problems and data.source == "films" and data.films and evaluation.films:
        problems += _shared(data.films, films, evaluation.films, measured)
    problems = problems or _known(config, films)
    if problems:
        raise FilmErrors(problems)
    return films, measured


def films_learnt(run: Run) -> set[str]:
    """Fingerprints of the real films that the run's generators learn from, their bases' too."""
    from hpc_hipgen.radiograph.duplicates import kept_fingerprints, learnt_by
    from hpc_hipgen.radiograph.layouts import read_manifest

    found = set().union(*map(learnt_by, run.config.given_models().values()))
    if run.config.data.source == "films":
        whole = kept_fingerprints(run.path("data"))
        films = read_manifest(run.path("data"), "train", nominal_only=True).film
        found |= {whole[film] for film in films if film in whole}
    return found


def _known(config: Experiment, films: Sequence[Film]) -> list[str]:
    """A line a film that is held out from training, but that a given model has learnt from."""
    from hpc_hipgen.radiograph.duplicates import learnt_by, seen_before

    held_out = {film.name: film for film in films if film.split != "train"}
    named = [(film.name, film.pixels) for film in held_out.values() if film.pixels]
    return [
        f"{name}: {key} ({folder}) has learnt from this film, which stands in the split "
        f"{held_out[name].split}; give it the split train in the landmark table"
        for key, folder in config.given_models().items()
        for name in seen_before(named, learnt_by(folder))
    ]


def _shared(
    folder: Path, films: Sequence[Film], other: Path, measured: Sequence[Film]
) -> list[str]:
    """Films that are to be measured, and are those of the data set under another name."""
    of_set = {film.pixels: film.name for film in films}
    return [
        f"{other / film.name}: is the same picture as {folder / of_set[film.pixels]}, from which "
        "the models learn; measure other films"
        for film in measured
        if film.pixels in of_set
    ]
