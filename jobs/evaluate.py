"""The evaluation stage: measures the angles of sample shards and extracts image features.

    python -m jobs.evaluate --run results/llcm --row llcm_4 --shard 0    one shard (an array task)
    python -m jobs.evaluate --run results/llcm --row llcm_4              all shards of a row
    python -m jobs.evaluate --run results/llcm                           everything that is missing

Writes evaluation/<row>/shard-NNNNN.npz (features), then shard-NNNNN.parquet (one line per image),
which marks the shard as done. A sample shard that is damaged is drawn anew first. Two rows are no
samples: `reference` holds features of the nominal training views, what the Fréchet distances
compare with, `controls` those of validation films and of planted copies, by which the
memorisation audit is set and checked.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_hipgen.arguments import check_row, open_run, parse_shards, status_of
from hpc_hipgen.pipeline import Item, check_before, feature_rows, sample_shard, score_shard
from hpc_hipgen.rows import CONTROLS_ROW, FEATURE_ROWS, REFERENCE_ROW
from hpc_hipgen.run import Run

if TYPE_CHECKING:
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


def evaluate_items(run: Run, todo: Sequence[Item]) -> int:
    """Evaluates sample shards in one process; returns how many were done now.

    Loads the ruler and the feature network once, and neither when nothing is missing. Raises
    ValueError naming the file for a shard that is missing or lacks something.
    """
    todo = [item for item in todo if not score_shard(run, item).is_file()]
    if not todo:
        return 0
    from hpc_hipgen.evaluation import measurements
    from hpc_hipgen.evaluation.distances import load_backbone
    from hpc_hipgen.rulers.ruler import ruler_of
    from hpc_hipgen.training.engine import device

    backbone = load_backbone(run.config.evaluation.inception).to(device())
    ruler = (
        ruler_of(run, device().type) if any(row not in FEATURE_ROWS for row, _ in todo) else None
    )
    for number, (row, shard) in enumerate(todo, 1):
        if row == REFERENCE_ROW:
            line = measurements.evaluate_reference(run, backbone)
        elif row == CONTROLS_ROW:
            line = measurements.evaluate_controls(run, backbone)
        else:
            samples = _samples(run, row, shard)
            line = measurements.evaluate_shard(run, (row, shard), samples, ruler, backbone)
        print(f"evaluate {number}/{len(todo)}  {row} shard {shard}: {line}", flush=True)
    return len(todo)


def _samples(run: Run, row: str, shard: int) -> list[Sample]:
    """The samples of a shard, drawn anew where it is damaged."""
    from hpc_hipgen.evaluation.samples import read_or_redraw
    from jobs.sample import sample_items

    path = sample_shard(run, (row, shard))
    samples = read_or_redraw(path, lambda: sample_items(run, [(row, shard)]))
    if not samples:
        raise ValueError(f"{path}: holds no samples")
    return samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    given = parse_shards("evaluate", __doc__, arguments)
    return status_of(lambda: _evaluate(given), ValueError, Path(given.run))


def _evaluate(given: argparse.Namespace) -> int:
    """Measures what is missing of the shards that were named; returns 0."""
    run = open_run(given.run)
    check_row(given.row, [*feature_rows(run), *run.rows()])
    check_before(run, "evaluate", ["prepare"])
    rows = None if given.row is None else [given.row]
    todo = items(run, rows) if given.shard is None else [(given.row, given.shard)]
    if not todo:
        raise ValueError(f"{run.path('samples', given.row or '')}: no sample shards")
    if given.row in FEATURE_ROWS and todo != [(given.row, 0)]:
        raise ValueError(f"--shard: row '{given.row}' has shard 0 alone")
    done = evaluate_items(run, todo)
    print(f"evaluate: {done} done now, {len(todo) - done} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
