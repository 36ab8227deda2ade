"""Tells by its pixels whether a picture was there before, under whatever name."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def fingerprint(pixels: np.ndarray) -> str:
    """What two pictures (h, w) uint8 share if, and in practice only if, they are the same.

    It says nothing of what the picture shows, so that it can go where no film may.
    """
    shape = f"{pixels.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]


def seen_before(named: Iterable[tuple[str, np.ndarray]], known: Iterable[str]) -> list[str]:
    """Names of the pictures whose fingerprints are among the `known` ones, each once, sorted."""
    among = set(known)
    return sorted({name for name, pixels in named if fingerprint(pixels) in among})


def learnt_from(ruler: Path) -> list[str] | None:
    """Fingerprints of the real films, as nominal views, that the ruler in a folder has learnt from.

    Empty for one that knows phantoms alone; None for one that learnt from films and keeps no list.
    """
    settings = json.loads((ruler / "ruler.json").read_text())
    return settings.get("training_films") if settings.get("source") == "films" else []
