"""Tells by its pixels whether a picture was there before, under whatever name."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hpc_hipgen.files import write_atomic

_FILMS = "fingerprints.json"
LEARNT = "training_films.json"
"""In exports of generators and autoencoders that have learnt from real films."""


def fingerprint(pixels: np.ndarray) -> str:
    """What two pictures (h, w) uint8 share if, and in practice only if, they are the same.

    It says nothing of what the picture shows, so that it can go where no film may.
    """
    shape = f"{pixels.shape}".encode()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]


def seen_before(named: Iterable[tuple[str, str]], known: Iterable[str]) -> list[str]:
    """Names of the pictures whose fingerprints are among the `known` ones, each once, sorted."""
    among = set(known)
    return sorted({name for name, found in named if found in among})


def keep_fingerprints(data: Path, films: Mapping[str, str]) -> None:
    """Stores the fingerprints of whole films, by name, in a data folder.

    A view is cut by landmarks, so that only the whole film is the same for every annotator.
    """
    (data / _FILMS).write_text(json.dumps(dict(sorted(films.items())), indent=1))


def kept_fingerprints(data: Path) -> dict[str, str]:
    """What `keep_fingerprints` stored; empty for phantoms, and for data of before there was any."""
    path = data / _FILMS
    return json.loads(path.read_text()) if path.is_file() else {}


def keep_learnt(export: Path, known: Iterable[str]) -> None:
    """Stores the fingerprints of the whole films that a model has learnt from, if any, with it."""
    if found := sorted(set(known)):
        write_atomic(export / LEARNT, json.dumps(found, indent=1))


def learnt_by(model: Path) -> set[str]:
    """What `keep_learnt` stored; empty for phantoms, and where nobody has kept it."""
    path = model / LEARNT
    return set(json.loads(path.read_text())) if path.is_file() else set()


def learnt_from(ruler: Path) -> list[str] | None:
    """Fingerprints of the real films that the ruler in a folder has learnt from.

    Of nominal views and, but for exports of before they were kept, of whole films. Empty for one
    that knows phantoms alone; None for one that learnt from films and keeps no list.
    """
    settings = json.loads((ruler / "ruler.json").read_text())
    return settings.get("training_films") if settings.get("source") == "films" else []
