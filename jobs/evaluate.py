"""The evaluation stage: measures the angles of sample shards and extracts image features.

    python -m jobs.evaluate --run results/llcm --row llcm_4 --shard 0    one shard (an array task)
    python -m jobs.evaluate --run results/llcm --row llcm_4              all shards of a row
    python -m jobs.evaluate --run results/llcm                           everything that is missing

Writes evaluation/<row>/shard-NNNNN.npz (features), then shard-NNNNN.parquet (one line per image),
which marks the shard as done. A sample shard that is damaged is drawn anew first. Two rows are no
samples: ``reference`` holds features of the nominal training views, what the Fréchet distances
compare with, ``controls`` those of validation films and of planted copies, by which the
memorisation audit is set and checked.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import check_row, parse_shards, status_of
from hpc_hipgen.files import write_atomic
from hpc_hipgen.pipeline import Item, feature_rows, sample_shard, score_shard
from hpc_hipgen.rows import CONTROLS_ROW, FEATURE_ROWS
from hpc_hipgen.rows import REFERENCE_ROW as REFERENCE
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from hpc_hipgen.evaluation.samples import Sample


def items(run: Run, rows: Iterable[str] | None = None) -> list[Item]:
    """(row, shard) of all sample shards that exist, features of films alone first."""
    from hpc_hipgen.shards import shard_numbers

    rows = [*feature_rows(run), *run.rows()] if rows is None else list(rows)
    found: list[Item] = []
    for row in rows:
        numbers = [0] if row in FEATURE_ROWS else shard_numbers(run.path("samples", row), "tar")
        found += [(row, number) for number in numbers]
    return found


def output(run: Run, row: str, shard: int) -> Path:
    """The file that marks a shard as evaluated."""
    return score_shard(run, (row, shard))


def evaluate_items(run: Run, todo: Sequence[Item]) -> int:
    """Evaluates sample shards in one process; returns how many were done now.

    Loads the ruler and the feature network once, and neither when nothing is missing. Raises
    ValueError naming the file for a shard that is missing or lacks something.
    """
    todo = [item for item in todo if not output(run, *item).is_file()]
    if not todo:
        return 0
    import torch

    from hpc_hipgen.evaluation.distances import load_backbone
    from hpc_hipgen.rulers.ruler import ruler_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load_backbone(run.config.evaluation.inception).to(device)
    ruler = ruler_of(run, device) if any(row not in FEATURE_ROWS for row, _ in todo) else None
    for number, (row, shard) in enumerate(todo, 1):
        if row == REFERENCE:
            line = _evaluate_reference(run, backbone)
        elif row == CONTROLS_ROW:
            line = _evaluate_controls(run, backbone)
        else:
            line = _evaluate_shard(run, row, shard, ruler, backbone)
        print(f"evaluate {number}/{len(todo)}  {row} shard {shard}: {line}", flush=True)
    return len(todo)


def _store_features(path: Path, keys: list[str], features: np.ndarray, **more: Any) -> None:
    """One npz with plain arrays, written atomically (read without pickle)."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, keys=np.array(keys, dtype=str), features=features, **more)
    write_atomic(path, buffer.getvalue())


def _evaluate_reference(run: Run, backbone: Any) -> str:
    """Features and prompt classes of the training films' nominal views."""
    import numpy as np

    from hpc_hipgen.radiograph.layouts import read_manifest

    films = read_manifest(run.path("data"), "train", nominal_only=True)
    batch = run.config.evaluation.batch
    features = backbone.extract(films.images, batch, "features of training films, batches")
    _store_features(
        output(run, REFERENCE, 0),
        list(films.ids),
        features,
        backbone=np.array(backbone.name),
        prompt_class=np.asarray(films.prompt_class, dtype=np.int64),
    )
    return f"features of {len(features)} training films"


def _evaluate_controls(run: Run, backbone: Any) -> str:
    """Features of the audit's controls: held-out films and planted copies."""
    import numpy as np

    from hpc_hipgen.evaluation.audit import read_controls
    from hpc_hipgen.radiograph.layouts import read_manifest

    films = read_manifest(run.path("data"), "train", nominal_only=True)
    controls = read_controls(run.path("data"), films)
    features = backbone.extract(controls.images, run.config.evaluation.batch)
    path = output(run, CONTROLS_ROW, 0)
    _store_features(path, controls.keys, features, backbone=np.array(backbone.name))
    return f"features of {len(features)} validation films and planted copies"


def _evaluate_shard(run: Run, row: str, shard: int, ruler: Any, backbone: Any) -> str:
    """Measures one sample shard, extracts its features and writes both."""
    import numpy as np

    samples = _samples(run, row, shard)
    batch = run.config.evaluation.batch
    table = measured(samples, row, ruler, batch)
    path = output(run, row, shard)
    keys = [sample.key for sample in samples]
    features = backbone.extract(np.stack([sample.image for sample in samples]), batch)
    _store_features(path.with_suffix(".npz"), keys, features, backbone=np.array(backbone.name))
    store_table(path, table)
    failed = int(table[["measured_left", "measured_right"]].isna().any(axis=1).sum())
    return f"{len(table)} images, {failed} not measured"


def _samples(run: Run, row: str, shard: int) -> list[Sample]:
    """The samples of a shard, drawn anew where it is damaged."""
    from hpc_hipgen.evaluation.samples import read_or_redraw
    from jobs.sample import sample_items

    path = sample_shard(run, (row, shard))
    samples = read_or_redraw(path, lambda: sample_items(run, [(row, shard)]))
    if not samples:
        raise ValueError(f"{path}: holds no samples")
    return samples


def measured(samples: Sequence[Sample], row: str, ruler: Any, batch: int) -> pd.DataFrame:
    """One line for each sample: what was asked for and what the ruler found."""
    import numpy as np
    import pandas as pd

    found = ruler.measure(np.stack([sample.image for sample in samples]), batch)
    assert len(found) == len(samples), "the ruler answers once per image"
    return pd.DataFrame([_line(row, s, m) for s, m in zip(samples, found, strict=True)])


def store_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a table as parquet, atomically."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomic(path, buffer.getvalue())


def _line(row: str, sample: Sample, measurement: Any) -> dict[str, Any]:
    """One line of the table; ``reason`` says why an angle is NaN."""
    from hpc_hipgen.radiograph.geometry import LANDMARK_COLUMNS, Angles

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    given = parse_shards("evaluate", "Measure sample shards with the ruler.", arguments)
    return status_of(lambda: _evaluate(given), ValueError)


def _evaluate(given: argparse.Namespace) -> int:
    """Measures what is missing of the shards that were named; returns 0."""
    run = Run(given.run)
    check_row(given.row, [*feature_rows(run), *run.rows()])
    rows = None if given.row is None else [given.row]
    todo = items(run, rows) if given.shard is None else [(given.row, given.shard)]
    if not todo:
        raise ValueError(f"{run.path('samples', given.row or '')}: no sample shards")
    done = evaluate_items(run, todo)
    print(f"evaluate: {done} done now, {len(todo) - done} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
