"""Shards of samples and of what was measured in them: what files are called, and seeds of images.

Nothing heavy is imported here.
"""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"shard-(\d{5,})\.(\w+)")


def shard_name(number: int, suffix: str) -> str:
    """File name of a shard: "tar" of samples, "json" of what they cost, "parquet" of measurements,
    "npz" of features."""
    return f"shard-{number:05d}.{suffix}"


def shard_numbers(folder: Path, suffix: str) -> list[int]:
    """Numbers of the shards ``shard-NNNNN.<suffix>`` in a folder, in order; empty without it."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(m[1]) for m in found if m and m[2] == suffix)


def image_seed(seed: int, index: int) -> int:
    """The seed of an image of a run with `seed`: it follows from the image's index alone."""
    return seed * 1_000_003 + index
