"""The sampling stage: images for the captions of the test films, in webdataset shards.

    python -m jobs.sample --run results/llcm --row llcm_4 --shard 0     one shard (an array task)
    python -m jobs.sample --run results/llcm --row llcm_4               all shards of a row
    python -m jobs.sample --run results/llcm                            everything that is missing

The rows `ruler`, `round_trip` and `round_trip_discrete` hold the test films themselves, untouched
and after an autoencoder: what the ruler measures there is its own error, and what an autoencoder
adds. The row `films` holds the views of the real films of `evaluation.films`, asked for what their
landmarks say. The others come from the exports of training: stock diffusers pipelines, and DALL-E.
One seed an image: the same whatever the shard size, the batch or the number of tasks. What a shard
of theirs cost, in seconds and evaluations of the network, stands beside it (shard-NNNNN.json).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import check_row, open_run, parse_shards, status_of
from hpc_hipgen.files import write_atomic
from hpc_hipgen.generators.drawing import (
    Drawer,
    OneDrawer,
    drawer_of,
    drawn,
    round_trip,
    with_subjects,
)
from hpc_hipgen.pipeline import Item, check_before, report_items, row_data, sample_shard
from hpc_hipgen.rows import FILMS_ROW, ROUND_TRIPS, ROWS_OF_FILMS, row_model, row_settings
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    import numpy as np

    from hpc_hipgen.config import Experiment
    from hpc_hipgen.radiograph.layouts import Films

UNTOUCHED_ROWS = ("ruler", FILMS_ROW)
"""Rows of views as they were prepared."""


def sample_items(run: Run, items: Sequence[Item]) -> int:
    """Draws the given (row, shard) items that are missing; returns how many were drawn now."""
    todo = [item for item in items if not sample_shard(run, item).is_file()]
    if not todo:
        return 0
    from hpc_hipgen.evaluation.samples import shard_bytes
    from hpc_hipgen.radiograph.layouts import read_manifest

    folders = {row_data(run, row) for row, _ in todo}
    films_of = {folder: read_manifest(folder, "test", nominal_only=True) for folder in folders}
    drawers = OneDrawer(partial(drawer_of, run))  # the rows of one model follow each other
    size = run.config.sampling.shard_size
    of_row: dict[str, list[dict[str, Any]]] = {}
    for number, (row, shard) in enumerate(sorted(todo), 1):
        films = films_of[row_data(run, row)]
        if row not in of_row:
            of_row = {row: _row_specs(run, films, row)}
        specs = of_row[row][shard * size : (shard + 1) * size]
        path = sample_shard(run, (row, shard))
        images: Iterable[np.ndarray]
        if row in ROWS_OF_FILMS:
            images = _views(run, row, films.images[[spec["view"] for spec in specs]])
        else:
            model, _ = row_model(run.config, row)
            images, cost = _drawn_at_cost(run, drawers.of(model), specs)
            write_atomic(path.with_suffix(".json"), json.dumps(cost))
        write_atomic(path, shard_bytes(specs, images, synthetic=is_synthetic(run.config, row)))
        print(
            f"sample {number}/{len(todo)}  {row} shard {shard}: {len(specs)} images",
            file=sys.stderr,
            flush=True,
        )
    return len(todo)


def is_synthetic(config: Experiment, row: str) -> bool:
    """Whether images of a row are marked so; an autoencoder makes no other dog of a patient."""
    if row in ROWS_OF_FILMS and config.data.source == "films":
        return False
    return row not in UNTOUCHED_ROWS


def _row_specs(run: Run, films: Films, row: str) -> list[dict[str, Any]]:
    """What each image of a row of the report is asked for."""
    from hpc_hipgen.evaluation.samples import image_specs

    if row in ROWS_OF_FILMS:
        return image_specs(run.config.seed, films, row)
    settings, per_caption = row_settings(run.config, row), run.config.sampling.per_caption
    specs = image_specs(run.config.seed, films, row, settings, per_caption)
    return with_subjects(run, row, specs)


def _views(run: Run, row: str, images: np.ndarray) -> np.ndarray:
    """Views (n, r, r) uint8 of a row of films: untouched, or after an autoencoder."""
    return round_trip(run, row, images) if row in ROUND_TRIPS else images


def _drawn_at_cost(
    run: Run, drawer: Drawer, specs: list[dict[str, Any]]
) -> tuple[list[np.ndarray], dict[str, float]]:
    """What `drawn` draws, and what that cost."""
    from hpc_hipgen.generators.sampling import sampling_cost

    with sampling_cost(drawer.network) as cost:
        images = list(drawn(run, drawer, specs))
    return images, {"images": len(images), **cost}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    given = parse_shards("sample", __doc__, arguments)
    return status_of(lambda: _sample(given), ValueError, Path(given.run))


def _sample(given: argparse.Namespace) -> int:
    """Draws what is missing of the shards that were named; returns 0."""
    run = open_run(given.run)
    check_row(given.row, run.rows())
    check_before(run, "sample", ["prepare"])
    items = [
        (row, shard)
        for row, shard in report_items(run) or []
        if given.row in (None, row) and given.shard in (None, shard)
    ]
    if not items:
        raise ValueError(f"--shard: row '{given.row}' has no shard {given.shard}")
    done = sample_items(run, items)
    print(f"sample: {done} drawn now, {len(items) - done} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
