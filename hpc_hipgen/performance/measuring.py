"""How many whole films a second a trained film ruler measures, files in and tables out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.performance.timing import turn_by_turn
from hpc_hipgen.radiograph.scene_store import draw_held_out
from hpc_hipgen.rulers.film_check import PHANTOMS
from hpc_hipgen.rulers.film_measuring import measure_files
from hpc_hipgen.rulers.film_ruler import load_film_ruler

FILMS, BATCH = 48, 16

SIZES = (480, 1440)
"""Pixels of the longer side: about what the networks see of a hip, and that of many real films."""

FORMATS = {"png": {"compress_level": 6}, "jpg": {"quality": 90}}


def measuring(ruler_folder: Path, repeats: int) -> list[dict[str, Any]]:
    """Films/s of `jobs.measure`, decoding included, overlays not, by size and format."""
    ruler = load_film_ruler(ruler_folder)
    drawn = [film for film, _ in run_parallel(draw_held_out, PHANTOMS[:FILMS])]
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        sets = {
            (size, suffix): _write(out, drawn, size, suffix) for size in SIZES for suffix in FORMATS
        }
        actions = {
            f"{size} {suffix}": lambda f=files: measure_files(f, ruler, out, BATCH, False, [])
            for (size, suffix), files in sets.items()
        }
        turns = turn_by_turn(actions, repeats)
    return [
        {
            "longer side": size,
            "format": suffix,
            "films": FILMS,
            "batch": BATCH,
            "threads": torch.get_num_threads(),
            "films/s": FILMS / median(seconds),
        }
        for (size, suffix), seconds in zip(sets, turns.values(), strict=True)
    ]


def _write(folder: Path, films: list[Any], size: int, suffix: str) -> list[Path]:
    """Writes films (h, w) uint8 with a longer side of `size` pixels."""
    paths = []
    for number, film in enumerate(films):
        paths.append(folder / f"{size}-{number}.{suffix}")
        scale = size / max(film.shape)
        shape = (round(film.shape[1] * scale), round(film.shape[0] * scale))
        Image.fromarray(film).resize(shape).save(paths[-1], **FORMATS[suffix])
    return paths
