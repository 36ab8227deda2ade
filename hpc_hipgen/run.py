"""The run folder: everything an experiment makes, and everything needed to repeat it.

A stage writes its artefacts under a temporary name, renames them, and marks itself done last, so
that a reader never sees half of anything and a second start goes on where the first one ended.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hpc_hipgen import ROOT
from hpc_hipgen.config import ConfigError, Experiment, parse_experiment
from hpc_hipgen.config.reading import read_yaml
from hpc_hipgen.files import read_json, write_atomic
from hpc_hipgen.rows import report_rows

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
                    "Choose another run with --run NAME; or go on with its own settings, which "
                    f"may be older than this program: CONFIG={path}"
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
        return report_rows(self.config)

    @property
    def teacher(self) -> str:
        """The model that students and adapters start from where they name no other."""
        return "feedback" if self.config.feedback else "stable_diffusion"

    @property
    def film_ruler(self) -> Path:
        """Folder of the film ruler that the run ends with: the one of a lab, where it makes one."""
        return self.path("lab_ruler" if self.config.lab_ruler else "film_ruler", "export")

    def base(self, model: str) -> Path:
        """Folder of the Stable Diffusion that a model of `config.ADAPTED` starts from."""
        own = "stable_diffusion" if model == "feedback" else self.teacher
        return getattr(self.config, model).base or self.path(own, "export")

    def first_stage(self, model: str) -> Path:
        """Folder of a model of `config.FIRST_STAGES`: the pretrained one, or the run's own."""
        return getattr(self.config, model).pretrained or self.path(model, "export")

    def done(self, stage: str) -> dict[str, Any] | None:
        """What `mark_done` stored for the stage, or None while it is not done.

        Raises:
            DamagedError: when its marker holds something else.
        """
        path = self.path("stages", f"{stage}.json")
        return read_json(path) if path.is_file() else None

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
        ConfigError: for a file, a folder of somebody's that is no run, the record of the program,
            a folder that holds the films, or a % in the path.
    """
    folder = folder.resolve()  # of `new/../old` nothing is there until `new` is made
    if folder == (ROOT / "results" / "reference").resolve():
        raise ConfigError(f"{folder}: is a record, no run; name another folder with --run")
    if "%" in str(folder):
        raise ConfigError(f"{folder}: Slurm reads % as a pattern; name another folder with --run")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name another folder with --run")
    if folder.is_dir() and not (folder / "config.yaml").is_file():
        if there := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")):
            raise ConfigError(
                f"{folder}: is not empty ({', '.join(there[:3])}, ...) and not a run: a run would "
                "replace what is there. Name a new folder with --run"
            )
    for films, _ in config.film_sets().values():
        if films.resolve().is_relative_to(folder):
            raise ConfigError(f"{films}: lies in the run folder, where a run would replace it")


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Keys that differ, and how, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, f"{key}: {old!r} there, {new!r} now"
