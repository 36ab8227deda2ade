"""The stages of a run and what each waits for, as data.

A stage names its function as "module:function", so that this module, which the login node imports,
stays light. A function gets the Run, the stage's arguments and, in an array stage, its items. Items
are (row, shard) pairs: one shard of samples of one row of the report. An item is done when its
artefact is in place; any other stage when its marker is.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

from hpc_hipgen.config import FEW_STEPS, NEEDS, TAUGHT, Experiment, LabRuler
from hpc_hipgen.models import RULERS
from hpc_hipgen.rows import CONTROLS_ROW, FEATURE_ROWS, FILMS_ROW, REFERENCE_ROW, ROWS_OF_FILMS
from hpc_hipgen.run import Run
from hpc_hipgen.shards import shard_name, shard_numbers

Item = tuple[str, int]

Kind = Literal["cpu", "gpu", "train"]
"""cpu: no accelerator; gpu: one process on one GPU; train: one process per GPU on whole nodes."""


@dataclass(frozen=True)
class Stage:
    """One node of the graph."""

    name: str
    function: str  # "module:function"
    kind: Kind
    after: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    items: Callable[[Run], list[Item] | None] | None = None  # of an array; None: not known yet
    artefact: Callable[[Run, Item], Path] | None = None
    follows: str | None = None  # the array, one of `after`, that makes what each item here reads
    model: str | None = None  # section of the model that it trains, saving when it is stopped
    blocks: bool = False  # items beside each other share a model, which an array's task loads once
    reads_films: bool = False  # whose mistakes it finds, so that a ValueError is the user's

    @property
    def shared(self) -> bool:
        """True for training, of which each rank does a part; all else every rank would do again."""
        return self.kind == "train" or self.model is not None

    def missing(self, run: Run) -> list[Item] | None:
        """Items without their artefact, or None while the items are not known."""
        assert self.items, f"{self.name} is not an array"
        items = self.items(run)
        if items is None:
            return None
        return [item for item in items if not self.there(run, item)]

    def there(self, run: Run, item: Item) -> bool:
        """True when an item has its artefact."""
        assert self.artefact, f"{self.name} is not an array"
        return self.artefact(run, item).is_file()

    def done(self, run: Run) -> bool:
        """True when nothing of this stage is left to do."""
        if self.items is None:
            return run.done(self.name) is not None
        return self.missing(run) == []


CROSS_VALIDATION = "cross_validate"
"""Name of the stage that trains a lab's ruler fold by fold."""

SHARED_BATCH = 32
"""Smallest batch that the GPUs of a node share out: below it, one GPU does as much as eight.

In images, or in groups of pairs where these are contrasted: a rank holds whole groups. The small
networks of rulers and probe have one GPU whatever their batch. A site's `stages` may ask for more.
"""


def stages(config: Experiment) -> list[Stage]:
    """The graph of an experiment, in an order in which the stages can run one after another."""
    trained = config.trained()
    graph = [Stage("prepare", "jobs.prepare:prepare", "cpu", reads_films=True)]
    for model in trained:
        after = tuple(f"train-{name}" for name in needed(config, model))
        if model == "lab_ruler":
            graph.append(_cross_validation(after))
            after = (*after, CROSS_VALIDATION)
        small = getattr(config, model).training.batch // contrast(config, model) < SHARED_BATCH
        kind: Kind = "gpu" if model in (*RULERS, "probe") or small else "train"
        after = ("prepare", *after)
        graph.append(
            Stage(f"train-{model}", "jobs.train:train", kind, after, (model,), model=model)
        )
    if config.lab_ruler:
        last = (CROSS_VALIDATION, "train-lab_ruler")
        return [*graph, Stage("report", "jobs.cross_validate:report", "cpu", last)]
    if config.film_ruler:  # samples nothing, and reports its errors itself
        return graph
    generators = tuple(f"train-{model}" for model in trained if model not in RULERS)
    ruler = tuple(f"train-{model}" for model in trained if model == "ruler")
    return [
        *graph,
        Stage(
            "sample",
            "jobs.sample:sample_items",
            "gpu",
            ("prepare", *generators),
            items=report_items,
            artefact=sample_shard,
        ),
        Stage(
            "evaluate",
            "jobs.evaluate:evaluate_items",
            "gpu",
            ("sample", *ruler),
            items=score_items,
            artefact=score_shard,
            follows="sample",
        ),
        Stage("report", "jobs.report:whole_report", "cpu", ("evaluate",)),
    ]


def check_before(run: Run, stage: str, needed: Collection[str] | None = None) -> None:
    """Sees that what a stage needs is done, before anything heavy is imported for it.

    Args:
        run: the run.
        stage: of its graph.
        needed: names of stages; default: all that the stage waits for.

    Raises:
        ValueError: naming what is not done.
    """
    graph = {each.name: each for each in stages(run.config)}
    needed = graph[stage].after if needed is None else needed
    missing = [name for name in needed if not graph[name].done(run)]
    if missing:
        raise ValueError(
            f"{run.folder}: {stage} waits for {', '.join(missing)}; "
            f"`python -m jobs.launch {run.folder}` runs what is missing, in order"
        )


def contrast(config: Experiment, model: str) -> int:
    """Images of a batch that one rank has to hold together: those that a CLIP contrasts, or one."""
    return getattr(getattr(config, model), "contrast", 1)


def _cross_validation(after: tuple[str, ...]) -> Stage:
    """The array whose items are the folds of a lab's films: trains on the others, measures one."""
    return Stage(
        CROSS_VALIDATION,
        "jobs.cross_validate:measure_folds",
        "gpu",
        ("prepare", *after),
        items=folds,
        artefact=fold_measurements,
        model="lab_ruler",
    )


def folds(run: Run) -> list[Item]:
    """The folds of a lab's films."""
    section = run.config.section("lab_ruler", LabRuler)
    return [("fold", number) for number in range(section.folds)]


def fold_measurements(run: Run, item: Item) -> Path:
    """What was measured in the films of a fold."""
    return run.path("cross_validation", f"fold-{item[1]}", "measurements.json")


def needed(config: Experiment, model: str) -> list[str]:
    """Models that this experiment trains and that a model is trained on."""
    section, trained = getattr(config, model), config.trained()
    without = set()
    if getattr(section, "base", None):
        without |= {"stable_diffusion", "feedback"}
    if "feedback" in trained and model in TAUGHT:  # from which feedback goes on, or from its base
        without.add("stable_diffusion")
    if not getattr(section, "measurement_weight", 0):
        without.add("probe")
        if model in FEW_STEPS:  # which asks the reward model how far the probe is off
            without.add("reward_model")
    return [n for n in NEEDS.get(model, ()) if n in trained and n not in without]


def trained_before(config: Experiment, model: str) -> list[str]:
    """Models of `needed`, and those that they are trained on, each once."""
    direct = needed(config, model)
    found = [*direct, *(name for near in direct for name in trained_before(config, near))]
    return list(dict.fromkeys(found))


def report_items(run: Run) -> list[Item] | None:
    """All (row, shard) pairs; None while the number of films is not known."""
    sampling = run.config.sampling
    items: list[Item] = []
    test = test_films(run)  # which reads a manifest: once
    for row in run.rows():
        films = real_films(run) if row == FILMS_ROW else test
        if films is None:
            return None
        images = films if row in ROWS_OF_FILMS else films * sampling.per_caption
        items += [(row, shard) for shard in range(ceil(images / sampling.shard_size))]
    return items


def shard_counts(run: Run) -> Counter[str]:
    """Shards of each row once it is sampled whole; empty while the number of films is unknown."""
    return Counter(row for row, _ in report_items(run) or [])


def begun_rows(run: Run) -> list[str]:
    """Rows of the report of which anything was sampled or measured.

    Raises:
        ValueError: when there is none.
    """
    kinds = (("samples", "tar"), ("evaluation", "parquet"))
    rows = [
        row
        for row in run.rows()
        if any(shard_numbers(run.path(folder, row), end) for folder, end in kinds)
    ]
    if not rows:
        raise ValueError(f"{run.path('evaluation')}: nothing evaluated yet")
    return rows


def score_items(run: Run) -> list[Item] | None:
    """What is evaluated: every shard of samples, then the films that they are compared with.

    In the order of `report_items`, so that the k-th share of both arrays holds the same shards.
    """
    items = report_items(run)
    return None if items is None else [*items, *((row, 0) for row in feature_rows(run))]


def feature_rows(run: Run) -> list[str]:
    """Those of `FEATURE_ROWS` that this run needs: no audit where nothing is drawn."""
    drawn = any(row not in ROWS_OF_FILMS for row in run.rows())
    return [REFERENCE_ROW, CONTROLS_ROW] if drawn else [REFERENCE_ROW]


def test_films(run: Run) -> int | None:
    """How many films the test split has: as configured for phantoms, else as prepared."""
    if run.config.data.source == "phantom":
        return run.config.data.test
    return _prepared_films(run, "data")


def real_films(run: Run) -> int | None:
    """How many real films the row `films` has; None before they are prepared."""
    return _prepared_films(run, row_data(run, FILMS_ROW).name)


def row_data(run: Run, row: str) -> Path:
    """The data folder whose test split a row is made from."""
    return run.path("films" if row == FILMS_ROW else "data")


def _prepared_films(run: Run, name: str) -> int | None:
    manifest = run.path(name, "manifest.csv")
    if run.done("prepare") is None or not manifest.is_file():
        return None
    return count_films(manifest, "test")


def count_films(manifest: Path, split: str) -> int:
    """How many films of a split a manifest has: each has one view without jitter, number 0."""
    with manifest.open(newline="") as file:
        return sum(r["split"] == split and r["view"] == "0" for r in csv.DictReader(file))


def sample_shard(run: Run, item: Item) -> Path:
    """Where the samples of an item lie (webdataset)."""
    row, shard = item
    return run.path("samples", row, shard_name(shard, "tar"))


def score_shard(run: Run, item: Item) -> Path:
    """The last file that the evaluation of an item writes: measurements, or features alone."""
    row, shard = item
    suffix = "npz" if row in FEATURE_ROWS else "parquet"
    return run.path("evaluation", row, shard_name(shard, suffix))
