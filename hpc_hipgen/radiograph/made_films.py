"""What became of each film of a data set, kept until all are made, so that none is made twice."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_hipgen.files import write_atomic
from hpc_hipgen.radiograph.deidentify import Finding, Searched


@dataclass(frozen=True)
class Made:
    """What became of one film: its manifest rows, degrees per pixel and D, and what was done."""

    rows: list[dict[str, Any]]
    degrees: float
    distance: float
    mirrored: bool
    searched: Searched | None


def keep(notes: Path, name: str, data: Path, made: Made) -> None:
    """Notes that all views of a film are in the folder `data`, under the film's `name` there."""
    searched = made.searched
    if searched is not None:
        buffer = io.BytesIO()
        np.save(buffer, searched.thumbnail, allow_pickle=False)
        write_atomic(notes / f"{name}.npy", buffer.getvalue())
    tree = {
        **vars(made),
        "sizes": [(data / row["file"]).stat().st_size for row in made.rows],
        "searched": searched
        and {
            "film": searched.film,
            "findings": [asdict(finding) for finding in searched.findings],
            "prompt_class": searched.prompt_class,
        },
    }
    write_atomic(notes / f"{name}.json", json.dumps(tree, default=int))  # numpy's integers


def kept(notes: Path, name: str, data: Path) -> Made | None:
    """What `keep` noted; None where it did not, or a view has not the size any more."""
    path = notes / f"{name}.json"
    if not path.is_file():
        return None
    tree = json.loads(path.read_text(encoding="utf-8"))
    sizes = tree.pop("sizes")
    files = [data / row["file"] for row in tree["rows"]]
    if [file.stat().st_size if file.is_file() else None for file in files] != sizes:
        return None
    if told := tree.pop("searched"):
        findings = [
            Finding(**{**found, "box": found["box"] and tuple(found["box"])})
            for found in told.pop("findings")
        ]
        thumbnail = np.load(notes / f"{name}.npy", allow_pickle=False)
        told = Searched(findings=findings, thumbnail=thumbnail, **told)
    return Made(**tree, searched=told)
