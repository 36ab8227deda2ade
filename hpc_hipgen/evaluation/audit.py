"""The memorisation audit of a run: from its data, samples and stored features to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hpc_hipgen.evaluation.film_pixels import FilmPixels
from hpc_hipgen.evaluation.measured_files import read_features
from hpc_hipgen.evaluation.memorisation import (
    ALARM,
    LEAST_HELD_OUT,
    PLANTED,
    FilmFeatures,
    Tail,
    Verdict,
    planted_copies,
    rates,
)
from hpc_hipgen.evaluation.metrics_file import read_metrics
from hpc_hipgen.evaluation.samples import read_images
from hpc_hipgen.pipeline import score_shard
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.layouts import Films, read_manifest, read_view
from hpc_hipgen.rows import CONTROLS_ROW, ROWS_OF_FILMS

if TYPE_CHECKING:
    from hpc_hipgen.evaluation.results import Features
    from hpc_hipgen.run import Run

HELD_OUT = "validation"
"""Kind of the controls that are no copies: they set the thresholds."""

SHOWN = 3
"""Closest pairs of a row that the report shows."""

COPIES_FILE = "copies.csv"
"""Of a report: the drawings that are called copies, see `copy_table`."""

COPIES_COLUMNS = (
    "row", "key", "shard", "film", "view", "embedding", "distance", "threshold", "chance",
    "mirrored",
)  # fmt: skip

DECODED = {
    "round_trip": "through the autoencoder",
    "round_trip_discrete": "through the discrete VAE",
}
"""Test films after what the generators draw with, to be found again: a control of its own."""


@dataclass
class Controls:
    """What the audit is set and checked by: validation films, and copies of training films.

    keys: n names; images: (n, h, w) uint8; kinds: n words, `HELD_OUT` or how it was copied;
    sources: (n,) int64, the training film that it is a copy of, -1 for none.
    """

    keys: list[str]
    images: np.ndarray
    kinds: np.ndarray
    sources: np.ndarray


def read_controls(data: Path, films: Films) -> Controls:
    """The controls of a data folder whose nominal training views are `films`; always the same.

    Generators are trained on all views of a film, so a copy of another view counts too.
    """
    held_out = read_manifest(data, HELD_OUT, nominal_only=True)
    last = len(films) - 1
    picks = np.unique(np.linspace(0, last, PLANTED).round().astype(int))
    picked = films.take(picks.tolist())
    planted = planted_copies(np.asarray(picked.images))
    others = read_view(data, "train", 1, picked.film)
    sources = dict.fromkeys(planted, picks)
    if others is not None:
        where = dict(zip(films.film, range(len(films)), strict=True))
        planted["another view"] = np.asarray(others.images)
        sources["another view"] = np.array([where[film] for film in others.film])
    kinds = [HELD_OUT] * len(held_out) + [k for k, x in planted.items() for _ in x]
    none = np.full(len(held_out), -1)
    source = np.concatenate([none, *sources.values()])
    names = held_out.ids + [films.ids[i] for i in source[len(held_out) :]]
    return Controls(
        [f"{kind}-{name}" for kind, name in zip(kinds, names, strict=True)],
        np.concatenate([held_out.images, *planted.values()]),
        np.array(kinds),
        source,
    )


@dataclass
class Auditor:
    """The training films in both embeddings, and how near held-out films come to them."""

    features: FilmFeatures
    pixels: FilmPixels
    tails: dict[str, Tail]

    @classmethod
    def of(
        cls, features: FilmFeatures, pixels: FilmPixels, held_out: tuple[np.ndarray, np.ndarray]
    ) -> Auditor:
        """held_out: features (n, d) and images (n, h, w) that set the thresholds."""
        new = cls(features, pixels, {})
        nearest = new._nearest(*held_out)
        return cls(features, pixels, {name: Tail.of(x.distance) for name, x in nearest.items()})

    def judge(self, features: np.ndarray, images: np.ndarray) -> Verdict:
        """The verdict on n images by their features (n, d) and pixels (n, h, w) uint8."""
        return Verdict.of(self._nearest(features, images), self.tails)

    def against(self, features: np.ndarray, images: np.ndarray) -> Auditor:
        """The same thresholds for copies of other films."""
        return Auditor(self.features.against(features), self.pixels.against(images), self.tails)

    def _nearest(self, features: np.ndarray, images: np.ndarray) -> dict[str, Any]:
        return {"features": self.features.nearest(features), "pixels": self.pixels.nearest(images)}


def audit(
    run: Run, tables: Mapping[str, pd.DataFrame], found: Features, dogs: Mapping[str, str]
) -> dict[str, Any] | None:
    """Copies of training films among what each generator drew; None where it cannot be told.

    That is without drawn films, without features of the controls (evaluated by an earlier
    version), or with fewer than `LEAST_HELD_OUT` validation films.

    `dogs`: the dog of each film whose captions were drawn for; others are dogs of their own.
    Keys: definition; alarm; embeddings (what, threshold and held_out of each); held_out, rows and
    controls (see `rates`, by row or kind of copy); pairs (the closest of each row); copies (every
    drawing that is called one, see `_copies`).
    Raises ValueError naming the file when the stored features are of other films.
    """
    stored = score_shard(run, (CONTROLS_ROW, 0))
    drawn = [row for row in tables if row not in ROWS_OF_FILMS]
    if not drawn or not stored.is_file():
        return None
    films = read_manifest(run.path("data"), "train", nominal_only=True)
    controls = read_controls(run.path("data"), films)
    keys, features, backbone = read_features(stored)
    if keys != controls.keys or backbone != found.backbone or len(films) != len(found.training):
        raise ValueError(f"{stored}: of other films than data/; remove evaluation/, evaluate again")
    held = controls.kinds == HELD_OUT
    if held.sum() < LEAST_HELD_OUT:
        return None
    gallery = FilmPixels(films.images, run.config.data.head_distance)
    held_out = features[held], controls.images[held]
    auditor = Auditor.of(FilmFeatures(found.training), gallery, held_out)
    rows = [row for row in tables if row in (*drawn, "ruler", *DECODED)]
    verdicts: dict[str, Verdict] = {}
    originals: dict[str, np.ndarray] = {}  # and decoded ones; of drawings only one row is held
    for row in progress(rows, len(rows), "memorisation audit, rows"):
        if (images := _row_images(run, row, tables[row])) is not None:
            verdicts[row] = auditor.judge(found.rows[row], images)
            if row not in drawn:
                originals[row] = images
    scores = {
        row: rates(verdict.flagged(), [dogs.get(film, film) for film in tables[row]["film"]])
        for row, verdict in verdicts.items()
    }
    recalled = _recall(auditor, controls, features)
    for row in (row for row in DECODED if {row, "ruler"} <= verdicts.keys()):
        if (flagged := _decoded(auditor, row, tables, found.rows, originals)) is not None:
            recalled[DECODED[row]] = rates(flagged)
    return {
        "definition": "nearer to a training film than all but "
        f"{ALARM:.1%} of held-out films, in one of two embeddings",
        "alarm": ALARM,
        "embeddings": _embeddings(auditor, backbone, int(held.sum())),
        "controls": recalled,
        "held_out": {row: score for row, score in scores.items() if row not in drawn},
        "rows": {row: score for row, score in scores.items() if row in drawn},
        "pairs": {
            row: _pairs(verdict, tables[row], films, SHOWN) for row, verdict in verdicts.items()
        },
        "copies": [
            {"row": row, **line}
            for row in drawn
            if row in verdicts
            for line in _copies(verdicts[row], auditor.tails, tables[row], films)
        ],
    }


def _embeddings(auditor: Auditor, backbone: str, held_out: int) -> dict[str, dict[str, Any]]:
    what = {
        "features": f"cosine distance of {backbone} features of the whole view, burned-in text "
        "included, each on the scale of the training films",
        "pixels": "1 - normalised cross-correlation of band-passed pixels around the hips, away "
        "from burned-in text, with what all hips share taken off; maximal over shifts by up to 6 "
        "pixels of 128 and the mirror image",
    }
    return {
        name: {"what": what[name], "threshold": tail.threshold, "held_out": held_out}
        for name, tail in auditor.tails.items()
    }


def _recall(
    auditor: Auditor, controls: Controls, features: np.ndarray
) -> dict[str, dict[str, Any]]:
    """How many of the planted copies are found, and with the right film, by kind."""
    result = {}
    for kind in dict.fromkeys(controls.kinds):
        if kind == HELD_OUT:
            continue
        own = controls.kinds == kind
        verdict = auditor.judge(features[own], controls.images[own])
        result[str(kind)] = rates(verdict.flagged(controls.sources[own]))
    return result


def _decoded(
    auditor: Auditor,
    row: str,
    tables: Mapping[str, pd.DataFrame],
    features: Mapping[str, np.ndarray],
    images: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray] | None:
    """Which test films are still found for what they are after an autoencoder, a row of DECODED.

    A generator can copy a film no better than the autoencoder that it draws with. Films that the
    ruler's row lacks, as that of a report made too early may, are left out; None when none remain.
    """
    where = {film: number for number, film in enumerate(tables["ruler"]["film"])}
    source = np.array([where.get(film, -1) for film in tables[row]["film"]])
    there = source >= 0
    if not there.any():
        return None
    originals = auditor.against(features["ruler"], images["ruler"])
    return originals.judge(features[row][there], images[row][there]).flagged(source[there])


def _row_images(run: Run, row: str, table: pd.DataFrame) -> np.ndarray | None:
    """Images (n, h, w) uint8 of a row in the order of its table; None where shards are gone."""
    by_key = read_images(run, row, zip(table["key"], table["shard"], strict=True))
    if len(by_key) < len(table) or not by_key:
        return None
    images = np.empty((len(table), *next(iter(by_key.values())).shape), np.uint8)
    for place, key in enumerate(table["key"]):
        images[place] = by_key.pop(key)  # so that they are not held twice
    return images


def _pairs(verdict: Verdict, table: pd.DataFrame, films: Films, n: int) -> list[dict[str, Any]]:
    """The n closest pairs of a row: key and shard of the image, id of the training view, and why.

    Of films there are ids alone, no names, in what metrics.json holds.
    """
    pairs = []
    for line in verdict.closest(n):
        image, film = line.pop("image"), line.pop("film")
        key, shard = str(table["key"].iloc[image]), int(table["shard"].iloc[image])
        pairs.append({"key": key, "shard": shard, "film": films.ids[film], **line})
    return pairs


def _copies(
    verdict: Verdict, tails: Mapping[str, Tail], table: pd.DataFrame, films: Films
) -> list[dict[str, Any]]:
    """The images of a row that are called copies, the most surprising first.

    As `_pairs`, and the threshold that the distance is below. Where both embeddings call an image
    a copy, the film is that of the smaller chance.
    """
    found = int(verdict.flagged()["either"].sum())  # they come first, for chance is what flags
    pairs = _pairs(verdict, table, films, found)
    return [{**pair, "threshold": tails[pair["embedding"]].threshold} for pair in pairs]


def copy_table(run: Run, copies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of `COPIES_FILE` for what `audit` has as copies: `COPIES_COLUMNS`.

    row, key, shard: of the drawing; film: the name of its nearest training film; view: the id of
    that film's nominal view; embedding: in which it is called a copy; distance, threshold: there,
    0 for the film itself; chance: that a held-out film comes as near, 0 to 1; mirrored: it is near
    as its mirror image.
    """
    if not copies:
        return []
    films = read_manifest(run.path("data"), "train", nominal_only=True)
    names = dict(zip(films.ids, films.film, strict=True))
    lines = ({**copy, "view": copy["film"], "film": names[copy["film"]]} for copy in copies)
    return [{column: line[column] for column in COPIES_COLUMNS} for line in lines]


def read_copies(run: Run, row: str) -> tuple[set[str], int]:
    """Keys of the drawings of a row that the run's report calls copies, and how many it judged.

    None of none before there is a report, or where that looked for no copies in this row.

    Raises:
        DamagedError: where the report's numbers cannot be read.
    """
    found = read_metrics(run).get("memorisation") or {}
    if "copies" not in found or row not in found["rows"]:  # an earlier version only counted them
        return set(), 0
    keys = {line["key"] for line in found["copies"] if line["row"] == row}
    return keys, found["rows"][row]["n"]
