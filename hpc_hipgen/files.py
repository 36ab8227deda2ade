"""Files and folders that are whole or not there, locks, and disks that are full."""

from __future__ import annotations

import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")
R = TypeVar("R")

LOCAL: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
"""How diffusers and transformers load a model: without the network, and safetensors only."""

_AT_ONCE = 16
"""Files that are written to the disk, linked or read at a time, where they are many."""


class DamagedError(ValueError):
    """A file, or a folder of them, does not hold what was written."""


def read_json(path: Path, remedy: str = "remove it and start again") -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        DamagedError: naming the file and the remedy, where it holds none.
        OSError: where it cannot be read.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError:  # UnicodeDecodeError, too
        found = None
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: damaged; {remedy}")
    return found


@contextmanager
def reading_export(folder: Path, *more: type[Exception]) -> Iterator[None]:
    """Says which folder it is whose files a library cannot read.

    `more`: what it raises besides, where nothing else raises that: a GPU without memory does.

    Raises:
        DamagedError: instead of what the library raised.
    """
    from safetensors import SafetensorError

    told: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, SafetensorError, *more)
    try:
        yield
    except told as error:
        if isinstance(error, DamagedError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{folder}: damaged or incomplete ({reason})") from error


def save_network(network: nn.Module, folder: Path, file: str, settings: dict[str, Any]) -> None:
    """Writes model.safetensors into the folder, and as `file` (JSON) what builds the network."""
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(network, str(folder / "model.safetensors"))
    write_atomic(folder / file, json.dumps(settings, indent=1))


def write_atomic(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Writes a file through a temporary name, fsync and rename; a long one may come in parts.

    Raises:
        OSError: naming the file, which the system does not where the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    parts = [data] if isinstance(data, bytes) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_files_once(path.parent)
    temporary, file = _claim(path, folder=False)
    try:
        with file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well.

    An older folder of that name is replaced; on an exception nothing changes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clean_abandoned(path.parent, path.name)
    workspace, lock = _claim(path, folder=True)
    temporary = workspace / path.name
    try:
        temporary.mkdir()
        yield temporary
        _put_in_place(temporary, path, workspace)
    finally:
        _restore(workspace)
        _remove_held(workspace, lock)


@contextmanager
def resumed_folder(path: Path, key: str, mistake: type[Exception]) -> Iterator[tuple[Path, Path]]:
    """As `atomic_folder`, for what takes long: the block finds what an earlier start had made.

    Two folders: what takes the place of `path`, and one for notes of what is whole in it. Both lie
    in `<path>.partial-<key>`, where `key`, of letters and digits, is another for other contents;
    that is left when the block is interrupted or fails, but not after a `mistake` in the input.
    Where another process is at it, or nobody can tell, the folders are empty and of this process
    alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = path.with_name(f"{path.name}.partial-{key}")
    file = _held(workspace)
    if file is None:
        with atomic_folder(path) as content, tempfile.TemporaryDirectory() as elsewhere:
            yield content, Path(elsewhere)
        return
    finished = False
    try:
        for other in path.parent.glob(f"{glob.escape(path.name)}.partial-*"):
            if other != workspace and (held := _held(other)):
                _remove_held(other, held)
        content, notes = workspace / path.name, workspace / "notes"
        shutil.rmtree(workspace / _RETIRED, ignore_errors=True)
        for folder in (content, notes):
            folder.mkdir(exist_ok=True)
        yield content, notes
        _put_in_place(content, path, workspace)
        finished = True
    except mistake:
        finished = True
        raise
    finally:
        if finished:
            _remove_held(workspace, file)
        file.close()


def _held(workspace: Path) -> IO[Any] | None:
    """The locked file of a workspace, which is made; None where this process cannot have it."""
    workspace.mkdir(exist_ok=True)
    file = (workspace / _LOCK).open("w")
    locked = lock(file)
    if locked:
        return file
    if locked is None:  # nobody can have it
        _remove_held(workspace, file)
    file.close()
    return None


def _remove_held(workspace: Path, lock: IO[Any]) -> None:
    lock.close()  # NFS keeps the name of a file that is open
    shutil.rmtree(workspace, ignore_errors=True)


def _put_in_place(content: Path, path: Path, workspace: Path) -> None:
    """Gives a folder of the workspace its name, once all its files are on the disk.

    An older one of that name goes into the workspace.
    """
    # a hard link needs no second sync of the same file
    files = {f.stat().st_ino: f for f in content.rglob("*") if f.is_file()}
    for _ in overlapped(fsync, files.values()):
        pass
    if path.exists():
        os.replace(path, workspace / _RETIRED)
    os.replace(content, path)
    fsync(path.parent)


_TEMPORARY, _LOCK, _RETIRED = ".tmp", "lock", "retired"


def _claim(path: Path, folder: bool) -> tuple[Path, IO[bytes]]:
    """A new hidden file beside `path`, or a folder with a file in it, and that file, locked.

    The lock ends with its process: it tells a living maker, on this node or another, from one
    that was killed.
    """
    while True:
        temporary = _new_name(path)
        if folder:
            temporary.mkdir()
        locked = temporary / _LOCK if folder else temporary
        with suppress(FileNotFoundError):  # taken for an abandoned one before it was locked
            file = locked.open("wb" if folder else "xb")
            if lock(file) is not False and locked.exists():
                return temporary, file
            file.close()


def _new_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")


def clean_abandoned(folder: Path, name: str | None = None, files_only: bool = False) -> None:
    """Removes what killed makers of the artefact `name`, or of any, left in `folder`.

    Nothing is removed where the file system has no locks, since nobody can tell then.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.{'[0-9a-f]' * 8}{_TEMPORARY}"
    for temporary in folder.glob(pattern):
        whole = temporary.is_dir()
        if whole and files_only:
            continue
        locked = temporary / _LOCK if whole else temporary
        try:
            with locked.open("ab" if whole else "r+b") as file:
                if not lock(file):
                    continue
                _restore(temporary)
                locked.unlink()  # a maker that had not locked it yet sees this, and starts anew
        except OSError:  # it ended by itself meanwhile, or is another user's
            continue
        if whole:
            shutil.rmtree(temporary, ignore_errors=True)


@functools.cache
def _clean_files_once(folder: Path) -> None:
    """Removes what killed makers of files left, at this process's first file in `folder`.

    Before every file, looking through a folder of n shards would cost n * n. A folder in the making
    stays, abandoned or not, until its own name is made again: its maker has to lock it first.
    """
    clean_abandoned(folder, files_only=True)


def remove_folder(path: Path) -> None:
    """Removes a folder so that it is whole or gone at any moment."""
    doomed = _new_name(path)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def _restore(workspace: Path) -> None:
    """Puts an older folder back whose successor did not get into its place."""
    name = workspace.name.removeprefix(".").removesuffix(_TEMPORARY).rpartition(".")[0]
    if (workspace / _RETIRED).exists() and not workspace.with_name(name).exists():
        os.replace(workspace / _RETIRED, workspace.with_name(name))


def lock(file: IO[Any]) -> bool | None:
    """True when this process holds the lock now, False when another does, None without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def local_locks(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The file system of a folder where its locks hold on one node only; empty for any other.

    That of BeeGFS, too, which may have been told otherwise: its mount does not show it.
    """
    place, longest, kind, options = folder.resolve(), "", "", ""
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, point, *rest = line.split(" ")
            point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), point)
            if place.is_relative_to(point) and len(point) >= len(longest):
                longest, kind, options = point, rest[0], rest[1]
    local = kind == "beegfs" or (kind == "lustre" and "localflock" in options.split(","))
    return kind if local else ""


def disk_full(error: BaseException | None) -> bool:
    """True when an error came from a disk, or a quota, that is full."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk_advice(folder: Path) -> str:
    """One line for whoever filled the disk."""
    return f"{folder}: the disk is full. Free space there, then start again to go on."


def is_full(folder: Path) -> bool:
    """True where a disk, or a quota on it, takes no more than a megabyte.

    A quota shows when something is written alone.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())  # NFS says it then
    except OSError as error:
        return disk_full(error)
    return False


def overlapped(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work`, which waits for a disk, returns for each of many items, in their order.

    In threads: a disk has the files of many on it in little more time than that of one.
    """
    rest = iter(items)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while part := list(islice(rest, 4 * _AT_ONCE)):
            yield from pool.map(work, part)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
