"""What comparisons have in common: where they lie in a run, what they keep, how they start.

A cell is one combination of what is compared. Cells are the items of an array stage; a second
stage merges them into a table. Nothing heavy is imported here.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from hpc_hipgen.cluster.launching import dry_run, execute, shown
from hpc_hipgen.cluster.site import Site
from hpc_hipgen.config import ConfigError, Section, parse_settings
from hpc_hipgen.files import read_json, write_atomic
from hpc_hipgen.pipeline import Item, Stage
from hpc_hipgen.run import Run


class Comparison(Section):
    """What is compared. Each comparison of a run has a name and, of that name, a folder."""

    job: ClassVar[str]  # with which names of its stages begin; its settings are in <job>.json
    folder: ClassVar[str]  # of the run, for all comparisons of this kind
    function: ClassVar[str]  # of the array stage
    result: ClassVar[str]  # the file that a cell writes last
    blocks: ClassVar[bool] = False  # as of `Stage`
    others: ClassVar[str] = "other settings"  # with which one of the same name was made

    def cell_names(self, run: Run) -> list[str]:
        """Names of the cells, in the order of the table."""
        raise NotImplementedError

    def same(self, other: Self) -> bool:
        """Whether both compare the same."""
        return self == other

    @classmethod
    def path(cls, run: Run, name: str, *parts: str) -> Path:
        """A path inside the folder of a comparison."""
        return run.path(cls.folder, name, *parts)

    @classmethod
    def cell_result(cls, run: Run, item: Item, name: str) -> Path:
        """The file that marks a cell as measured."""
        return cls.path(run, name, "cells", item[0], cls.result)

    @classmethod
    def names(cls, run: Run) -> list[str]:
        """The comparisons of a run."""
        return sorted(path.parent.name for path in run.path(cls.folder).glob(f"*/{cls.job}.json"))

    @classmethod
    def load(cls, run: Run, name: str) -> Self | None:
        """What was saved under a name, or None."""
        path = cls.path(run, name, f"{cls.job}.json")
        return parse_settings(cls, read_json(path), str(path)) if path.is_file() else None

    @classmethod
    def saved(cls, run: Run, name: str) -> Self:
        """The same for a job, which was submitted after that; raises ValueError without it."""
        found = cls.load(run, name)
        if found is None:
            raise ValueError(f"{cls.path(run, name)}: nothing was planned there")
        return found

    def save(self, run: Run, name: str) -> None:
        """Keeps it under a name, or sees that it is the same.

        Raises:
            ConfigError: when something else was compared under this name.
        """
        folder, there = self.path(run, name), self.load(run, name)
        if there is None:
            write_atomic(folder / f"{self.job}.json", self.model_dump_json(indent=1))
        elif not self.same(there):
            raise ConfigError(
                f"{folder} was made with {self.others}; choose another --name, or remove it"
            )

    @classmethod
    def items(cls, run: Run, name: str) -> list[Item] | None:
        """The cells as items of an array stage; None before they are saved."""
        found = cls.load(run, name)
        return None if found is None else [(cell, 0) for cell in found.cell_names(run)]

    @classmethod
    def before(cls, name: str) -> list[Stage]:
        """Stages that the cells wait for."""
        return []

    @classmethod
    def graph(cls, name: str) -> list[Stage]:
        """What comes before, the cells, drawn or trained and measured, and their table."""
        before, cells = cls.before(name), f"{cls.job}-{name}"
        return [
            *before,
            Stage(
                cells,
                cls.function,
                "gpu",
                tuple(stage.name for stage in before),
                (name,),
                items=partial(cls.items, name=name),
                artefact=partial(cls.cell_result, name=name),
                blocks=cls.blocks,
            ),
            Stage(f"{cells}-table", f"jobs.{cls.job}:merge", "cpu", (cells,), (name,)),
        ]

    def start(self, run: Run, name: str, site: Site, dry: bool, note: str) -> int:
        """Does what is missing, or with `dry` prints it; returns the exit status.

        The table is made again when anything was missing. Prints `note` before it starts.
        """
        graph, slurm, cells = self.graph(name), site.uses_slurm(), self.cell_names(run)
        if dry:
            print("".join(f"  {cell}\n" for cell in cells), end="")
            return dry_run(run.folder, f"{self.job} {name}", graph, site, slurm)
        self.save(run, name)
        *arrays, merge = graph
        table = self.path(run, name, "table.csv")
        if any(array.missing(run) for array in arrays) or not table.is_file():
            run.unmark(merge.name)
        elif merge.done(run):
            print(f"{shown(run.folder)}: all {len(cells)} cells are there. {shown(table)}")
            return 0
        print(note)
        return execute(run, graph, site, slurm, f"Table: {shown(table)}")


def check_name(name: str) -> None:
    """Raises ConfigError unless a folder can be called so."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"--name {name}: letters, digits, '.', '_' and '-' only")
    if name.endswith(("-table", "-samples")):
        raise ConfigError(f"--name {name}: is what a stage of another would be called")


def one_is_a_list(value: Any) -> Any:
    """What is given for a list of settings: a list, or the one value of it."""
    return value if isinstance(value, list | tuple) else [value]
