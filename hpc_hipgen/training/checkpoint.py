"""Checkpoints that are whole or not there.

A checkpoint is a folder named after the clock. It is written under a temporary name, renamed when
every rank has finished, and only then older ones are removed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from hpc_hipgen.run import fsync, write_atomic
from hpc_hipgen.training.engine import rank
from hpc_hipgen.training.task import Task

KEEP = 2
_STATE = "state"
_COMPLETE = "complete.json"


def save(engine: Any, task: Task, folder: Path, images: int) -> None:
    """Writes the checkpoint of the moment at which `images` were seen; called by every rank."""
    final = folder / f"{images:010d}"
    temporary = folder / f".{final.name}.partial"
    if rank() == 0:
        for abandoned in folder.glob(".*.partial"):  # by a process that was killed
            shutil.rmtree(abandoned)
        temporary.mkdir(parents=True)
    _barrier()
    engine.save_checkpoint(
        str(temporary), tag=_STATE, client_state={"images": images}, save_latest=False
    )
    if rank() == 0:
        averages = {name: average.state_dict() for name, average in task.averages.items()}
        torch.save(averages, temporary / "averages.pt")
        sizes = {
            str(f.relative_to(temporary)): f.stat().st_size
            for f in sorted(temporary.rglob("*"))
            if f.is_file()
        }
        for name in sizes:
            fsync(temporary / name)
        write_atomic(temporary / _COMPLETE, json.dumps({"images": images, "files": sizes}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in complete_checkpoints(folder)[KEEP:]:
            shutil.rmtree(old)
    _barrier()


def restore(engine: Any, task: Task, folder: Path) -> int:
    """Loads the newest complete checkpoint; returns the images seen, 0 when there is none."""
    found = complete_checkpoints(folder)
    if not found:
        return 0
    path, client = engine.load_checkpoint(str(found[0]), tag=_STATE)
    if path is None:
        raise ValueError(f"{found[0]}: DeepSpeed could not load this checkpoint")
    averages = torch.load(found[0] / "averages.pt", weights_only=True, map_location="cpu")
    for name, average in task.averages.items():
        average.load_state_dict(averages[name])
    return int(client["images"])


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first; a file of another size than recorded disqualifies."""
    found = []
    for path in sorted(folder.glob("[0-9]*"), reverse=True):
        marker = path / _COMPLETE
        if not marker.is_file():
            continue
        sizes = json.loads(marker.read_text())["files"]
        if all((path / n).is_file() and (path / n).stat().st_size == s for n, s in sizes.items()):
            found.append(path)
    return found


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
