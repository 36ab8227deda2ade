"""The run folder: everything an experiment makes, and everything needed to repeat it.

A stage writes its artefacts under a temporary name, renames them, and marks itself done last, so
that a reader never sees half of anything and a second start goes on where the first one ended.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hpc_hipgen.config import GENERATORS, ConfigError, Experiment, parse_experiment

FEW_STEPS = ("llcm", "lcm_lora")
"""Students: a row of the report for each number of steps of `sampling.llcm_steps`."""


def row_model(row: str) -> tuple[str, int | None]:
    """The model that draws a row, and the number of steps where the row's name says it."""
    model, _, steps = row.rpartition("_")
    return (model, int(steps)) if model in FEW_STEPS and steps.isdecimal() else (row, None)


class Run:
    """One run folder. Cheap to make: reads config.yaml and nothing else."""

    def __init__(self, folder: Path | str) -> None:
        """Opens an existing run folder.

        Raises:
            ConfigError: when the folder holds no valid config.yaml.
        """
        self.folder = Path(folder)
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise ConfigError(f"{self.folder}: not a run folder (no config.yaml)")
        self.config: Experiment = parse_experiment(yaml.safe_load(path.read_text()), str(path))

    @classmethod
    def create(cls, folder: Path | str, config: Experiment) -> Run:
        """Makes the run folder, or opens it when it was made with the same settings.

        Raises:
            ConfigError: when the folder belongs to other settings; names the first ones.
        """
        folder = Path(folder)
        path = folder / "config.yaml"
        tree = config.model_dump(mode="json")
        if path.is_file():
            stored = yaml.safe_load(path.read_text())
            changed = list(_differences(stored, tree))
            if changed:
                raise ConfigError(
                    f"{folder} was made with other settings ({'; '.join(changed[:3])}). "
                    "Choose another run with --run NAME, or remove the folder."
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, yaml.safe_dump(tree, sort_keys=False))
        return cls(folder)

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)

    def rows(self) -> list[str]:
        """Rows of the report, each a folder of sample shards."""
        rows = ["ruler"]
        if self.config.evaluation.films:
            rows.append("films")
        if self.config.autoencoder:
            rows.append("round_trip")
        for name in GENERATORS:
            if not getattr(self.config, name):
                continue
            if name in FEW_STEPS:
                rows += [f"{name}_{steps}" for steps in self.config.sampling.llcm_steps]
            else:
                rows.append(name)
        return rows

    def base(self, model: str) -> Path:
        """Folder of the Stable Diffusion that a model of `config.ADAPTED` starts from."""
        return getattr(self.config, model).base or self.path("stable_diffusion", "export")

    def done(self, stage: str) -> dict[str, Any] | None:
        """What `mark_done` stored for the stage, or None while it is not done."""
        path = self.path("stages", f"{stage}.json")
        return json.loads(path.read_text()) if path.is_file() else None

    def mark_done(self, stage: str, **info: Any) -> None:
        """Marks a stage as complete; to be called after its last artefact is in place."""
        self.path("stages").mkdir(exist_ok=True)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_atomic(
            self.path("stages", f"{stage}.json"),
            json.dumps({"stage": stage, "finished": stamp, **info}, indent=1),
        )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file through a temporary name, fsync and rename."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder that takes the place of `path` when the block ends well.

    An older folder of that name is replaced; on an exception nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.chmod(temporary, 0o777 & ~_umask())
    try:
        yield temporary
        # A hard link needs no second sync of the same file.
        for file in {f.stat().st_ino: f for f in temporary.rglob("*") if f.is_file()}.values():
            fsync(file)
        if path.exists():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, retired / path.name)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
        fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {old!r} there, {new!r} now"
