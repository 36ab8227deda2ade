"""The run folder: everything an experiment makes, and everything needed to repeat it.

A stage writes its artefacts under a temporary name, renames them, and marks itself done last, so
that a reader never sees half of anything and a second start goes on where the first one ended.
"""

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
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from hpc_hipgen.config import GENERATORS, LLCMS, ConfigError, Experiment, parse_experiment
from hpc_hipgen.config.reading import read_yaml

FEW_STEPS = (*LLCMS, "lcm_lora")
"""Students: a row of the report for each number of steps of `sampling.llcm_steps`."""


UNTUNED = "stable_diffusion_untuned"
"""Row of the Stable Diffusion as it was before feedback, where there is any."""

_WITH_FEEDBACK = {"stable_diffusion": "feedback", UNTUNED: "stable_diffusion"}
"""The row `stable_diffusion` is the teacher of the run: with feedback, the model that had it."""


def row_model(config: Experiment, row: str) -> tuple[str, int | None]:
    """The model that draws a row, and the number of steps where the row's name says it."""
    model, _, steps = row.rpartition("_")
    if model in FEW_STEPS and steps.isdecimal():
        return model, int(steps)
    return (_WITH_FEEDBACK.get(row, row) if config.feedback else row), None


def model_rows(config: Experiment, model: str) -> list[str]:
    """The rows that a generator draws."""
    if model in FEW_STEPS:
        return [f"{model}_{steps}" for steps in config.sampling.llcm_steps]
    if config.feedback:
        return [next((row for row, name in _WITH_FEEDBACK.items() if name == model), model)]
    return [model]


def row_settings(config: Experiment, row: str) -> dict[str, Any]:
    """What a generated row is drawn with: steps, guidance scale, ..., or as tokens are."""
    sampling = config.sampling
    if row == "dall_e":
        return config.dall_e.sampling.model_dump()
    settings = {
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "solver": sampling.solver,
        "eta": sampling.eta,
    }
    if row == "unclip":
        return settings | config.unclip.sampling.model_dump()
    model, few = row_model(config, row)
    if few is not None:
        # an LCM-LoRA has its guidance in its weights; a scale above 1 would guide it twice
        guidance = sampling.student_guidance if model in LLCMS else 1.0
        return {"steps": few, "guidance": guidance, "solver": "lcm", "eta": 0.0}
    if model == "feedback":  # it has learnt to draw without
        settings["guidance"] = 1.0
    return settings


HOW = re.compile(
    r"\.training\.(micro_batch|zero_stage|workers|compile|checkpoint_images|keep_images"
    r"|log_images)$"
    r"|^(sampling|evaluation)\.batch$|^logging\b"
)
"""Settings of how a run is executed: at most the last bits of what it makes depend on them."""


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
        self.config: Experiment = parse_experiment(read_yaml(path), str(path))

    @classmethod
    def create(cls, folder: Path | str, config: Experiment, write: bool = True) -> Run:
        """Makes the run folder, or opens it when it was made with the same settings.

        Those that say how to execute it and not what to make (`HOW`) may change: after a GPU that
        was too small, say. Without `write` a run that exists is only opened.

        Raises:
            ConfigError: when the folder belongs to other settings; names the first ones. When it is
                no place for a run (`check_place`).
        """
        folder = Path(folder)
        check_place(folder, config)
        path = folder / "config.yaml"
        tree = config.model_dump(mode="json")
        if path.is_file():
            # parsed, so that a run from before a setting existed has that setting's default
            stored = cls(folder).config.model_dump(mode="json")
            changed = list(_differences(stored, tree))
            if other := [line for key, line in changed if not HOW.search(key)]:
                raise ConfigError(
                    f"{folder} was made with other settings ({'; '.join(other[:3])}). "
                    "Choose another run with --run NAME, or remove the folder."
                )
            if changed and write:
                print(f"{folder}: changed, {'; '.join(line for _, line in changed)}")
                write_atomic(path, yaml.safe_dump(tree, sort_keys=False))
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
        if self.config.discrete_vae:
            rows.append("round_trip_discrete")
        for name in GENERATORS:
            if getattr(self.config, name):
                rows += model_rows(self.config, name)
        return rows

    @property
    def teacher(self) -> str:
        """The model that students and adapters start from where they name no other."""
        return "feedback" if self.config.feedback else "stable_diffusion"

    def base(self, model: str) -> Path:
        """Folder of the Stable Diffusion that a model of `config.ADAPTED` starts from."""
        own = "stable_diffusion" if model == "feedback" else self.teacher
        return getattr(self.config, model).base or self.path(own, "export")

    def first_stage(self, model: str) -> Path:
        """Folder of a model of `config.FIRST_STAGES`: the pretrained one, or the run's own."""
        return getattr(self.config, model).pretrained or self.path(model, "export")

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

    def unmark(self, stage: str) -> None:
        """Has a stage count as not done; its artefacts stay."""
        self.path("stages", f"{stage}.json").unlink(missing_ok=True)


def check_place(folder: Path, config: Experiment) -> None:
    """Sees that a run can have this folder: stages replace what lies where their artefacts go.

    Raises:
        ConfigError: for a folder of somebody's that is no run, or one that holds the films.
    """
    if folder.is_dir() and not (folder / "config.yaml").is_file():
        if there := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")):
            raise ConfigError(
                f"{folder}: is not empty ({', '.join(there[:3])}, ...) and not a run: a run would "
                "replace what is there. Name a new folder with --run"
            )
    for films, _ in config.film_sets().values():
        if films.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{films}: lies in the run folder, where a run would replace it")


def write_atomic(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Writes a file through a temporary name, fsync and rename; a long one may come in parts."""
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
    except BaseException:
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
        # A hard link needs no second sync of the same file.
        for file in {f.stat().st_ino: f for f in temporary.rglob("*") if f.is_file()}.values():
            fsync(file)
        if path.exists():
            os.replace(path, workspace / _RETIRED)
        os.replace(temporary, path)
        fsync(path.parent)
    finally:
        _restore(workspace)
        lock.close()  # NFS keeps the name of a file that is open
        shutil.rmtree(workspace, ignore_errors=True)


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
    pattern = f".{'*' if name is None else glob.escape(name)}.*{_TEMPORARY}"
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


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys that differ, and how, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, f"{key}: {old!r} there, {new!r} now"
