"""The numbers of a run: everything that metrics.json holds, computed from the run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpc_hipgen.comparisons.downstream_utility import summaries
from hpc_hipgen.evaluation import distances, diversity, real_films
from hpc_hipgen.evaluation.audit import audit
from hpc_hipgen.evaluation.bands import bands_of
from hpc_hipgen.evaluation.faithfulness import (
    PAPER_TABLE_1,
    PAPER_TEST_FILMS,
    bootstrap_intervals,
    constant_mae,
    faithfulness,
    paired_bootstrap,
    permutation_null,
)
from hpc_hipgen.evaluation.measured_files import load_table, read_array, read_features
from hpc_hipgen.files import DamagedError
from hpc_hipgen.json_lines import read_lines
from hpc_hipgen.models import MODELS
from hpc_hipgen.pipeline import begun_rows, row_data, sample_shard, score_shard, shard_counts
from hpc_hipgen.radiograph.geometry import PATIENT_SIDES
from hpc_hipgen.radiograph.pictures import BACKUP
from hpc_hipgen.rows import FILMS_ROW, REFERENCE_ROW, ROWS_OF_FILMS, row_model, row_settings
from hpc_hipgen.run import Run
from hpc_hipgen.shards import shard_name, shard_numbers

TEACHER = "stable_diffusion"
CONTROL = "stable_diffusion_caption"  # digits only: what the others are to be better than

FILM_LABELS = {
    "ruler": "Test films (ruler alone)",
    FILMS_ROW: "Real films (ruler)",
    "round_trip": "Autoencoder round trip",
    "round_trip_discrete": "Discrete VAE round trip",
}
"""Names of the rows that no generator drew, for people."""


@dataclass
class Results:
    """What a report is made from.

    tables: evaluation table per row of the report, in the report's order, only rows that exist;
    missing: configured rows without samples; partial: of rows that lack shards, how many they have;
    metrics: the content of metrics.json; logs: lines of each training stage's metrics.jsonl.
    """

    tables: dict[str, pd.DataFrame]
    missing: list[str]
    partial: dict[str, str]
    metrics: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def row_label(row: str, run: Run) -> str:
    """Name of a row for people."""
    if row in FILM_LABELS:
        return FILM_LABELS[row]
    model, few = row_model(run.config, row)
    if model not in MODELS:
        return model.replace("_", " ")
    steps = run.config.sampling.steps if few is None else few
    label = MODELS[model].label.format(steps=f"{steps} step{'s' if steps != 1 else ''}")
    # the teacher before feedback and after it differ in this, too
    scale = row_settings(run.config, row).get("guidance", 1.0)
    return f"{label}, guidance {scale:g}" if run.config.feedback and scale > 1 else label


def read_table(run: Run, row: str) -> pd.DataFrame:
    """Evaluation table of a row, all shards, sorted by index.

    Raises ValueError naming the first sample shard that was not evaluated, or a duplicated image.
    """
    folder = run.path("evaluation", row)
    numbers = shard_numbers(run.path("samples", row), "tar")
    there = shard_numbers(folder, "parquet")
    absent = sorted(set(numbers) - set(there))
    if absent:
        shard = sample_shard(run, (row, absent[0]))
        raise ValueError(
            f"{shard} is not evaluated; run "
            f"python -m jobs.evaluate --run {run.folder} --row {row} --shard {absent[0]}"
        )
    parts = []
    for number in there:
        path = folder / shard_name(number, "parquet")
        parts.append(load_table(path).assign(shard=number))
    table = pd.concat(parts).sort_values("index", kind="stable").reset_index(drop=True)
    twice = table["key"][table["key"].duplicated()]
    if len(twice):
        raise ValueError(f"{folder}: image {twice.iloc[0]} is in two shards")
    return table


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl in order of images seen; a cut-off last line is left out.

    After a resume the same image count can stand twice: the later line is the one that counts.
    """
    lines: dict[float, dict[str, Any]] = {}
    for line in read_lines(path, "images"):
        lines[line["images"]] = {**lines.get(line["images"], {}), **line}
    return [lines[images] for images in sorted(lines)]


def training_seconds(lines: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of training by the lines of a metrics.jsonl, over all starts of the run."""
    total, before = 0.0, 0
    for line in lines:
        if rate := line.get("images_per_second"):
            total += (line["images"] - before) / rate
        before = line["images"]
    return total


def _partial(run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Rows of which some shards are neither sampled nor measured yet: "1 of 2 shards"."""
    whole = shard_counts(run)
    there = {row: table["shard"].nunique() for row, table in tables.items()}
    return {row: f"{n} of {whole[row]} shards" for row, n in there.items() if n < whole[row]}


def collect(run: Run) -> Results:
    """Reads the evaluation of all rows that exist and computes every number of the report.

    Raises ValueError when no row was evaluated, or a shard was left out.
    """
    found = {row: read_table(run, row) for row in begun_rows(run)}
    manifest = _manifest(run)
    logs = {stage: read_log(run.path(stage, "metrics.jsonl")) for stage in run.config.trained()}
    dogs, theirs = dogs_of(manifest), dogs_of(_manifest(run, FILMS_ROW))
    scores = {
        row: _sides(table, run, theirs if row == FILMS_ROW else dogs)
        for row, table in found.items()
    }
    ruler = _ruler(scores, found)
    features = _read_features(run, found)
    metrics = {
        "name": run.config.name,
        "synthetic": run.config.data.source == "phantom",  # all that was learnt and measured
        "sides": "left and right are the patient's; the patient's left is at the image's right",
        "faithfulness": scores,
        "baseline": _baseline(found),
        "confidence": {row: _confidence(table) for row, table in found.items()},
        "bands": {row: bands_of(table) for row, table in found.items()},
        "against_teacher": _comparisons(found, manifest),
        "ruler": ruler,
        "films": real_films.summary(found.get(FILMS_ROW), ruler),
        "frechet": features and _frechet(features, found),
        "diversity": diversity.of_rows(run, found),
        "memorisation": features and audit(run, found, features, dogs),
        "utility": summaries(run),
        "paper": {
            "test_films": PAPER_TEST_FILMS,
            "table_1": [{"name": p.name, "left": p.left, "right": p.right} for p in PAPER_TABLE_1],
            "dalle_fid": {str(k): v for k, v in distances.PAPER_FID.items()},
        },
        "runtime": _runtime(run, logs),
        "settings": run.config.model_dump(mode="json"),
    }
    missing = [row for row in run.rows() if row not in found]
    partial = _partial(run, found)
    return Results(found, missing, partial, metrics, {k: v for k, v in logs.items() if v})


def dogs_of(manifest: pd.DataFrame | None) -> dict[str, str]:
    """The dog of each film; empty without a manifest."""
    return {} if manifest is None else dict(zip(manifest["film"], manifest["dog"], strict=True))


def _sides(table: pd.DataFrame, run: Run, dogs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Faithfulness of one row: both sides, each with intervals and its permutation null.

    ``constant_mae`` is of the images that were measured, as the row's own MAE is.
    """
    result = {}
    names = [str(dogs.get(film, film)) for film in table["film"]]
    for side in PATIENT_SIDES:
        asked, measured = table[f"asked_{side}"], table[f"measured_{side}"]
        result[side] = faithfulness(asked, measured)
        result[side] |= bootstrap_intervals(asked, measured, names, seed=run.config.seed)
        count = run.config.evaluation.permutations
        null = (
            permutation_null(asked, measured, names, permutations=count, seed=run.config.seed)
            if count
            else None
        )
        result[side]["permutation_null"] = null
        result[side]["constant_mae"] = constant_mae(asked[np.isfinite(measured)])
    return result


def _confidence(table: pd.DataFrame) -> dict[str, float]:
    """How clear the landmarks were to the ruler, 0..1: ``median``, and ``low``, the 5th percentile.

    Few drawings are refused, so refusals alone hardly say whether a drawing shows hips.
    """
    low, median = np.quantile(table["confidence"], [0.05, 0.5])
    return {"median": float(median), "low": float(low)}


def _manifest(run: Run, row: str = "ruler") -> pd.DataFrame | None:
    """The manifest of the films that a row is made from."""
    path = row_data(run, row) / "manifest.csv"
    return manifest_table(path) if path.is_file() else None


def manifest_table(path: Path) -> pd.DataFrame:
    """A manifest; names of films and dogs that look like numbers are names.

    Raises:
        DamagedError: for a file that is no table.
    """
    try:
        return pd.read_csv(path, dtype={"film": str, "dog": str})
    except ValueError as error:
        raise DamagedError(f"{path}: damaged ({error}); {BACKUP}") from None


def _baseline(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """By side, the angle that is best always drawn for all captions, and its error, in degrees."""
    drawn = [row for row in tables if row not in ROWS_OF_FILMS] or list(tables)
    asked = {side: tables[drawn[0]][f"asked_{side}"] for side in PATIENT_SIDES}
    return {s: {"angle": float(x.median()), "mae": constant_mae(x)} for s, x in asked.items()}


def _comparisons(
    tables: Mapping[str, pd.DataFrame], manifest: pd.DataFrame | None
) -> dict[str, Any]:
    """MAE of each generator minus the teacher's, on the same captions, bootstrap over dogs."""
    if TEACHER not in tables:
        return {}
    dogs, result = dogs_of(manifest), {}
    for row, table in tables.items():
        if row in (*ROWS_OF_FILMS, TEACHER):
            continue
        both = table.merge(tables[TEACHER], on=["index", "film"], suffixes=("", "_teacher"))
        asked, first, second = (
            both[[f"{name}_{side}{end}" for side in PATIENT_SIDES]].to_numpy(float)
            for name, end in (("asked", ""), ("measured", ""), ("measured", "_teacher"))
        )
        names = [str(dogs.get(film, film)) for film in both["film"]]
        result[row] = paired_bootstrap(asked, first, second, names)
    return result


def _ruler(
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]], tables: Mapping[str, pd.DataFrame]
) -> dict[str, Any] | None:
    """The ruler's own error on held-out films.

    Its r there is what it would find of a generator that draws what it is asked for.
    """
    if "ruler" not in scores:
        return None
    result: dict[str, Any] = {"split": "test"}
    for side in PATIENT_SIDES:
        score, sd = scores["ruler"][side], float(tables["ruler"][f"asked_{side}"].std())
        result[side] = {k: score[k] for k in ("mae", "bias", "r", "n", "failed")}
        result[side] |= {"population_sd": sd if np.isfinite(sd) else None}
    maes = [result[side]["mae"] for side in PATIENT_SIDES if result[side]["mae"] is not None]
    result["mae"] = float(np.mean(maes)) if maes else None
    return result


def _row_features(run: Run, row: str, table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Features of a row in the order of its table, and the backbone's name."""
    by_key: dict[str, np.ndarray] = {}
    names = set()
    for number in sorted(set(table["shard"])):
        path = run.path("evaluation", row, shard_name(number, "npz"))
        keys, features, name = read_features(path)
        by_key |= dict(zip(keys, features, strict=True))
        names.add(name)
    if len(names) > 1:
        raise ValueError(f"{run.path('evaluation', row)}: features of {sorted(names)} are mixed")
    return np.stack([by_key[key] for key in table["key"]]), names.pop()


@dataclass
class Features:
    """Features of images, (n, d) float32: of every row, and of the training films."""

    rows: dict[str, np.ndarray]
    training: np.ndarray
    classes: np.ndarray  # prompt class of each training film
    backbone: str


def _read_features(run: Run, tables: Mapping[str, pd.DataFrame]) -> Features | None:
    """The stored features of all rows; None without those of the training films."""
    path = score_shard(run, (REFERENCE_ROW, 0))
    if not path.is_file():
        return None
    _, reference, backbone = read_features(path)
    classes = read_array(path, "prompt_class")
    features = {}
    for row, table in tables.items():
        features[row], name = _row_features(run, row, table)
        if name != backbone:
            raise ValueError(
                f"{run.path('evaluation', row)}: features of {name}, but the reference has "
                f"{backbone}; remove evaluation/ and evaluate again"
            )
    return Features(features, reference, classes, backbone)


def _frechet(found: Features, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Distances to the training films, per row and prompt class.

    The floor is the test films themselves (row ``ruler``) against the same reference.
    """
    result: dict[str, Any] = {
        "name": distances.distance_name(found.backbone),
        "backbone": found.backbone,
        "reference": "training films, nominal views, of the same prompt class",
        "floor": "test films of the same class against the same reference, same number of images",
        "rows": {row: {} for row in tables},
    }
    for group in ["all", *sorted({int(c) for c in found.classes})]:
        every = group == "all"
        training = found.training if every else found.training[found.classes == group]
        reference = distances.Reference(training)
        wanted = {
            row: np.full(len(table), every) | (table["prompt_class"] == group).to_numpy()
            for row, table in tables.items()
        }
        real = found.rows["ruler"][wanted["ruler"]] if "ruler" in tables else None
        for row, table in tables.items():
            features, films = found.rows[row][wanted[row]], list(table["film"][wanted[row]])
            compared = distances.compare_sets(features, reference, real, films)
            result["rows"][row][str(group)] = compared
    return result


def _runtime(run: Run, logs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What each stage noted when it was done, and each training's images, speed and seconds.

    The seconds are of all starts of a training; its stage notes those of the last one.
    """
    stages: dict[str, dict[str, Any]] = {}
    for path in sorted(run.path("stages").glob("*.json")):
        if path.stem != "report":  # that of an earlier one
            stages[path.stem] = run.done(path.stem) or {}
    for stage, lines in logs.items():
        if not lines:
            continue
        speeds = [x["images_per_second"] for x in lines if x.get("images_per_second")]
        entry = stages.setdefault(f"train-{stage}", {})
        entry["images"] = lines[-1]["images"]
        if speeds:
            entry["images_per_s_median"] = float(np.median(speeds))
            entry["seconds"] = training_seconds(lines)
    return stages
