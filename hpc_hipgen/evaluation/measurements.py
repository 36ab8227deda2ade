"""What is measured in images: angles by the ruler, features by an image network.

Each `evaluate_...` writes the files of one item of the evaluation, and returns a line that says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpc_hipgen.evaluation.audit import read_controls
from hpc_hipgen.evaluation.measured_files import store_features, store_table
from hpc_hipgen.evaluation.samples import Sample
from hpc_hipgen.pipeline import Item, score_shard
from hpc_hipgen.radiograph.geometry import LANDMARK_COLUMNS, Angles
from hpc_hipgen.radiograph.layouts import read_manifest
from hpc_hipgen.rows import CONTROLS_ROW, REFERENCE_ROW
from hpc_hipgen.run import Run


def evaluate_reference(run: Run, backbone: Any) -> str:
    """Features and prompt classes of the training films' nominal views."""
    films = read_manifest(run.path("data"), "train", nominal_only=True)
    batch = run.config.evaluation.batch
    features = backbone.extract(films.images, batch, "features of training films, batches")
    store_features(
        score_shard(run, (REFERENCE_ROW, 0)),
        list(films.ids),
        features,
        backbone=np.array(backbone.name),
        prompt_class=np.asarray(films.prompt_class, dtype=np.int64),
    )
    return f"features of {len(features)} training films"


def evaluate_controls(run: Run, backbone: Any) -> str:
    """Features of the audit's controls: held-out films and planted copies."""
    films = read_manifest(run.path("data"), "train", nominal_only=True)
    controls = read_controls(run.path("data"), films)
    features = backbone.extract(controls.images, run.config.evaluation.batch)
    path = score_shard(run, (CONTROLS_ROW, 0))
    store_features(path, controls.keys, features, backbone=np.array(backbone.name))
    return f"features of {len(features)} validation films and planted copies"


def evaluate_shard(
    run: Run, item: Item, samples: Sequence[Sample], ruler: Any, backbone: Any
) -> str:
    """Measures the samples of a shard, extracts their features and writes both."""
    batch = run.config.evaluation.batch
    table = measured(samples, item[0], ruler, batch)
    path = score_shard(run, item)
    keys = [sample.key for sample in samples]
    features = backbone.extract(np.stack([sample.image for sample in samples]), batch)
    store_features(path.with_suffix(".npz"), keys, features, backbone=np.array(backbone.name))
    store_table(path, table)
    failed = int(table[["measured_left", "measured_right"]].isna().any(axis=1).sum())
    return f"{len(table)} images, {failed} not measured"


def measured(samples: Sequence[Sample], row: str, ruler: Any, batch: int) -> pd.DataFrame:
    """One line for each sample: what was asked for and what the ruler found."""
    found = ruler.measure(np.stack([sample.image for sample in samples]), batch)
    assert len(found) == len(samples), "the ruler answers once per image"
    return pd.DataFrame([_line(row, s, m) for s, m in zip(samples, found, strict=True)])


def _line(row: str, sample: Sample, measurement: Any) -> dict[str, Any]:
    """One line of the table; ``reason`` says why an angle is NaN."""
    angles = Angles(float(measurement.image_left), float(measurement.image_right))
    confidence, reason = float(measurement.confidence), str(measurement.reason or "")
    finite = [math.isfinite(angle) for angle in (angles.image_left, angles.image_right)]
    if not reason and not all(finite):
        reason = "no finite angle"
    info = sample.info
    if info["row"] != row:
        raise ValueError(f"sample {sample.key} of row '{row}' says it belongs to '{info['row']}'")
    landmarks = [float(value) for hip in measurement.landmarks for value in hip]
    return {
        "key": sample.key,
        "row": row,
        "index": int(info["index"]),
        "film": str(info["film"]),
        "prompt_class": int(info["prompt_class"]),
        "seed": int(info["seed"]),
        "asked_left": float(info["asked_left"]),
        "asked_right": float(info["asked_right"]),
        "measured_left": angles.patient_left,
        "measured_right": angles.patient_right,
        "confidence": confidence,
        "reason": reason,
        **dict(zip(LANDMARK_COLUMNS, landmarks, strict=True)),
    }
