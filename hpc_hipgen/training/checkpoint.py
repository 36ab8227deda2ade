"""Checkpoints that are whole or not there.

A checkpoint is a folder named after the clock. Rank 0 writes it under a temporary name with a hash
of every file, renames it, and only then removes older ones. It holds whole tensors, so it is
resumed on any number of ranks.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpc_hipgen.files import (
    atomic_folder,
    clean_abandoned,
    disk_full,
    remove_folder,
    sha256_of,
    write_atomic,
)
from hpc_hipgen.training import portable
from hpc_hipgen.training.checkpoint_files import (
    AVERAGES,
    COMPLETE,
    STATE,
    checkpoint_path,
    named_checkpoints,
)
from hpc_hipgen.training.engine import rank
from hpc_hipgen.training.learning_rate import LearningRate
from hpc_hipgen.training.outcome import CheckpointError
from hpc_hipgen.training.record import Window
from hpc_hipgen.training.task import Task

KEEP = 2


def save(
    engine: Any,
    task: Task,
    rate: LearningRate,
    window: Window,
    folder: Path,
    images: int,
    keep: int | None = None,
) -> None:
    """Writes the checkpoint of the moment at which `images` were seen; called by every rank.

    The last `KEEP` are kept, and the first one after every multiple of `keep` images; of that, once
    it is none of the last, the averages alone, which a sweep draws with.

    Raises:
        CheckpointError: on every rank, when rank 0 could not write it.
    """
    also = {"rate": rate.state_dict(), "window": window.state_dict()}
    state = portable.state_of(engine, task.stores_frozen) | also
    problem = None
    if rank() == 0:
        averages = {n: a.state_dict(task.stores_frozen) for n, a in task.averages.items()}
        try:
            _write(folder, images, {STATE: state, AVERAGES: averages}, keep)
        except (OSError, RuntimeError) as error:  # torch wraps some errors of a disk
            problem = _why(folder, images, error)
    if problem := _from_rank_0(problem):
        raise CheckpointError(problem)


def restore(engine: Any, task: Task, rate: LearningRate, window: Window, folder: Path) -> int:
    """Loads the newest sound checkpoint; returns the images seen, 0 when there is none."""
    if rank() == 0:
        clean_abandoned(folder)
    name = _from_rank_0(_newest_sound(folder) if rank() == 0 else None)
    if name is None:
        return 0
    path = folder / name
    try:
        state = _load(path / STATE)
        portable.load_state(engine, state)
    except ValueError as error:
        raise ValueError(f"{path} is of another network: {error}") from None
    for name, part in (("rate", rate), ("window", window)):
        part.load_state_dict(state.get(name, {}))  # older checkpoints have none
    del state  # every rank of a node holds one
    averages = _load(path / AVERAGES)
    for key, average in task.averages.items():
        average.load_state_dict(averages[key])
    return int(path.name)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints with all their files, newest first; contents are not read."""
    return [path for path in named_checkpoints(folder) if damage(path, contents=False) is None]


def damage(path: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None; `contents` also compares every file's hash."""
    try:
        files = json.loads((path / COMPLETE).read_text())["files"]
        written = [(path / name, size, digest) for name, (size, digest) in files.items()]
    except FileNotFoundError:
        return f"{COMPLETE} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{COMPLETE} is damaged"
    for file, size, digest in written:
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size} bytes, {size} were written"
        if contents and sha256_of(file) != digest:
            return f"{file.name} does not hold what was written"
    return None


def _averages_alone(path: Path) -> bool:
    """Whether a checkpoint that is whole was left for sweeps alone."""
    return STATE not in json.loads((path / COMPLETE).read_text())["files"]


def _newest_sound(folder: Path) -> str | None:
    """Name of the newest checkpoint that is as it was written; says what it passes over."""
    passed = False
    for path in named_checkpoints(folder):
        problem = damage(path)
        if problem is None and not _averages_alone(path):
            if passed:
                print(f"going on from the one before: {path}", file=sys.stderr, flush=True)
            return path.name
        passed = True
        why = f"damaged checkpoint: {path}: {problem}" if problem else f"{path}: averages alone"
        print(why, file=sys.stderr, flush=True)
    if passed:
        print(f"{folder}: nothing to go on from; starting anew", file=sys.stderr, flush=True)
    return None


def _write(folder: Path, images: int, contents: dict[str, Any], keep: int | None = None) -> None:
    final = checkpoint_path(folder, images)
    with atomic_folder(final) as temporary:
        for name, content in contents.items():
            # given a path, torch reports a full disk as a position it did not expect
            with (temporary / name).open("wb") as file:
                torch.save(content, file)
        files = {n: [(temporary / n).stat().st_size, sha256_of(temporary / n)] for n in contents}
        write_atomic(temporary / COMPLETE, json.dumps({"images": images, "files": files}))
    whole = complete_checkpoints(folder)
    # a later one than this was damaged, or had lost its state: training had gone on from it else
    complete = [path for path in whole if path.name <= final.name]
    last, for_sweeps = complete[:KEEP], set()
    if keep:
        first = {int(path.name) // keep: path for path in complete}  # the newest comes first
        first.pop(0, None)
        for_sweeps = {*first.values()}
    for old in named_checkpoints(folder):
        later = old in whole and old not in complete
        if old in last or (keep and later and _averages_alone(old)):
            continue
        # a file that another process reads can hold its folder on NFS; the next start cleans up
        with suppress(OSError):
            _drop_state(old) if old in for_sweeps else remove_folder(old)


def _drop_state(path: Path) -> None:
    """Leaves of a checkpoint its averages: a quarter or a third of its size."""
    said = json.loads((path / COMPLETE).read_text())
    if said["files"].pop(STATE, None):
        write_atomic(path / COMPLETE, json.dumps(said))
    (path / STATE).unlink(missing_ok=True)


def _why(folder: Path, images: int, error: Exception) -> str:
    """One line that names the folder and what to do."""
    full = disk_full(error)
    reason = "the disk is full" if full else " ".join(str(error).split())
    before = complete_checkpoints(folder)
    kept = f"the one at {int(before[0].name)} is kept" if before else "there is none before it"
    remedy = "Free space there, then start" if full else "Start"
    return (
        f"{folder}: the checkpoint at {images} images could not be written ({reason}); {kept}. "
        f"{remedy} again to go on."
    )


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=True, map_location="cpu")


def _from_rank_0(value: str | None) -> str | None:
    """Rank 0's value on every rank; all of them wait for it."""
    if not torch.distributed.is_initialized():
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
