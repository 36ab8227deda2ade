"""What `jobs.benchmark` measures of the loader: views from shards, few of them and very many."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from hpc_hipgen.performance.timing import ratio, seconds_of, turn_by_turn
from hpc_hipgen.radiograph.layouts import Films, read_imagefolder, read_shards
from hpc_hipgen.run import Run

Line = dict[str, Any]

BATCH = 8
"""Views that are asked for at once."""

SCALED_VIEWS, SHARDS = 2_048, (4, 64, 512)
"""Views that lie in so many shards."""

MANY_VIEWS, MANY_SHARDS = 250_000, (16, 256)
"""The size of the source paper's larger set."""

READ = 4_096
"""Of very many views, so many are read."""


def loader(run: Run, repeats: int) -> list[Line]:
    """Views/s read in random order, against decoding the same PNG bytes from memory."""
    layouts = run.path("data", "layouts")
    folder = layouts / "imagefolder" / "train"
    order = np.random.default_rng(0).permutation(len(list(folder.glob("*.png"))))
    files = [path.read_bytes() for path in sorted(folder.glob("*.png"))]

    def decode() -> None:
        for number in order:
            with Image.open(io.BytesIO(files[number])) as picture:
                np.asarray(picture)

    turns = turn_by_turn(
        {
            "decoding from memory": decode,
            "shards": lambda: _read(read_shards(layouts / "shards", "train"), order),
            "image folder": lambda: _read(read_imagefolder(folder), order),
        },
        repeats,
    )
    return [
        {
            "source": name,
            "views": len(files),
            "views/s": len(files) / median(seconds),
            "of decoding": ratio(turns["decoding from memory"], seconds),
        }
        for name, seconds in turns.items()
    ]


def _read(films: Films, order: np.ndarray) -> None:
    """Decodes views (k,) in that order, batch by batch, as the training loop does."""
    for start in range(0, len(order), BATCH):
        films.ahead(order[start + BATCH : start + 2 * BATCH])
        films.images[order[start : start + BATCH]]


def scale(run: Run, repeats: int) -> list[Line]:
    """As many views in few shards and in many."""
    return [_scaled(run, shards, SCALED_VIEWS, repeats) for shards in SHARDS]


def many(run: Run, repeats: int) -> list[Line]:
    """The size of the source paper's larger set, really written (some 2 GB) and read."""
    return [_scaled(run, shards, MANY_VIEWS, repeats) for shards in MANY_SHARDS]


def _scaled(run: Run, shards: int, views: int, repeats: int) -> Line:
    """Start-up, memory and rate of so many views in so many shards."""
    folder = run.path(f"shards-{shards}-{views}")
    _write_shards(run, folder, shards, views)
    first = seconds_of(lambda: read_shards(folder, "train"))  # makes the index, as `prepare` does
    tracemalloc.start()
    read_shards(folder, "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    order = np.random.default_rng(0).permutation(views)[:READ]

    def start() -> None:
        read_shards(folder, "train")

    turns = turn_by_turn(
        {"start": start, "read": lambda: _read(read_shards(folder, "train"), order)}, repeats
    )
    reading = median(r - s for r, s in zip(turns["read"], turns["start"], strict=True))
    return {
        "views": views,
        "shards": shards,
        "index made once, s": first,
        "start-up, s": median(turns["start"]),
        "start-up, peak MB": peak / 1e6,
        "views/s": len(order) / reading,
    }


def _write_shards(run: Run, folder: Path, shards: int, views: int) -> None:
    """The training views of a run over and over under names of their own."""
    import webdataset

    sources = sorted(run.path("data", "layouts", "shards").glob("train-*.tar"))
    samples = [
        sample
        for path in sources
        for sample in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    folder.mkdir()
    for shard in range(shards):
        name = folder / f"train-class_1-{shard:06d}.tar"
        with webdataset.TarWriter(str(name), mtime=0) as tar:
            for number in range(shard, views, shards):
                sample = samples[number % len(samples)]
                key = f"train-{number:06d}"
                info = json.loads(sample["json"]) | {"id": key}
                content = {k: sample[k] for k in ("png", "txt")}
                tar.write({"__key__": key, "json": json.dumps(info).encode(), **content})
