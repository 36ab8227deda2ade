"""Do generated films help a ruler that has few films with landmarks to learn from?

    python -m jobs.utility results/llcm
    python -m jobs.utility results/llcm row=llcm_4 films=[10,40] seeds=5 images=4000 --name four

  row        of the report: the generator; default: the last one
  films      training films with landmarks (10, 20, 40, 80, 160)
  seeds      rulers of each kind (3): which films, first weights, order, augmentation
  generated  films drawn, for captions of the training split (438)
  images     that each ruler sees of the films with landmarks (6000)
  weight     of a degree off on a film without landmarks (0.1)

Three rulers for each number of films and seed: of these films alone; of them and generated films,
of which it is told the angles that were asked for; of them and, in place of the generated ones, of
the other training films, told their angles (not where `films` is all of them). All see the same
films with landmarks in the same order. Their errors are on the test films, every hip counted,
refused or not. The generator has learnt from the whole training split: what is asked is whether it
saves landmarks, not films. The run's own ruler, which measures the generators, is another and sees
no generated film.

Here everything runs one after another, under Slurm as arrays. A second start does only what is
missing. Afterwards:

  RUN/utility/NAME/table.csv    a line for each number of films and kind of ruler
  RUN/utility/NAME/curve.svg    the learning curves, with 95 % intervals
  RUN/report/report.html        a section, where there is a report

Exit status: 0 done or submitted, 1 a stage failed, 2 a mistake in the command, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.cluster.site import load_site
from hpc_hipgen.comparisons.cells import check_name
from hpc_hipgen.comparisons.downstream_utility import ALONE, ANGLES, GENERATED, Cell, Utility, plan
from hpc_hipgen.config import Ruler, training_of
from hpc_hipgen.files import read_json, remove_folder, write_atomic
from hpc_hipgen.pipeline import Item
from hpc_hipgen.rows import row_model, row_settings
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.layouts import Films
    from hpc_hipgen.rulers.few_films import AngleFilms


def draw(run: Run, name: str, todo: Sequence[Item]) -> int:
    """Draws shards of generated films; returns how many were drawn now."""
    from hpc_hipgen.evaluation.samples import image_specs, shard_bytes, spread
    from hpc_hipgen.generators.drawing import drawer_of, drawn, with_subjects
    from hpc_hipgen.radiograph.layouts import read_manifest

    settings = Utility.saved(run, name)
    films = read_manifest(run.path("data"), "train", nominal_only=True)
    times = -(-settings.generated // len(films))
    # another seed than the report's, so that these are no images of its
    seed, look = run.config.seed + 1, row_settings(run.config, settings.row)
    specs = image_specs(seed, films, settings.row, look, times)
    specs = [specs[i] for i in spread([spec["film"] for spec in specs], settings.generated)]
    model, _ = row_model(run.config, settings.row)
    specs, size = with_subjects(run, model, specs), run.config.sampling.shard_size
    drawer = drawer_of(run, model)
    for item in sorted(todo):
        part = specs[item[1] * size : (item[1] + 1) * size]
        content = shard_bytes(part, drawn(run, drawer, part), synthetic=True)
        write_atomic(Utility.sample_shard(run, item, name), content)
    return len(todo)


def train_and_measure(run: Run, name: str, todo: Sequence[Item]) -> int:
    """Trains rulers and measures the test films with them; returns how many were done now."""
    from hpc_hipgen.radiograph.layouts import read_manifest
    from hpc_hipgen.training.engine import init_distributed

    init_distributed()
    settings = Utility.saved(run, name)
    known = {cell.name: cell for cell in settings.cells(run)}
    films = read_manifest(run.path("data"), "train")
    test = read_manifest(run.path("data"), "test", nominal_only=True)
    generated = _generated(run, name, settings)
    for number, item in enumerate(sorted(todo), 1):
        cell = known[item[0]]
        result = _train_and_measure(run, name, cell, films, test, generated)
        print(f"utility {number}/{len(todo)}  {cell.name}: MAE {result:.2f}", flush=True)
    return len(todo)


def _generated(run: Run, name: str, settings: Utility) -> AngleFilms:
    """All generated films with the angles that were asked for."""
    import numpy as np

    from hpc_hipgen.evaluation.samples import read_samples
    from hpc_hipgen.radiograph.geometry import swap_sides
    from hpc_hipgen.rulers.few_films import AngleFilms

    items = Utility.sample_items(run, name) or []
    found = [s for item in items for s in read_samples(Utility.sample_shard(run, item, name))]
    if len(found) != settings.generated:
        raise ValueError(
            f"{Utility.path(run, name, 'samples')}: {len(found)} films, "
            f"{settings.generated} were asked for; remove the folder"
        )
    asked = np.array([(s.info["asked_left"], s.info["asked_right"]) for s in found])
    return AngleFilms(np.stack([s.image for s in found]), swap_sides(asked))


def _train_and_measure(
    run: Run, name: str, cell: Cell, films: Films, test: Films, generated: AngleFilms
) -> float:
    """One cell; returns its mean absolute error in degrees."""
    import numpy as np

    from hpc_hipgen.rulers import few_films
    from hpc_hipgen.training import loop

    settings, seed = Utility.saved(run, name), run.config.seed + 1 + cell.seed
    few, others = few_films.chosen_films(films, cell.films, seed)
    more = {
        ALONE: None,
        GENERATED: generated,
        ANGLES: few_films.angles_alone(others, settings.generated),
    }[cell.arm]
    training = training_of(run.config.section("ruler", Ruler))
    warmup = min(training.warmup_images, settings.images // 10)
    changed = {"images": settings.images, "warmup_images": warmup}
    training = training.model_copy(update=changed)
    task = few_films.FewFilmsTask(run.config, training, few, more, settings.weight, seed)
    folder, began = Utility.path(run, name, "cells", cell.name), time.monotonic()
    loop.train(task, training, folder, seed=seed, title=cell.name)
    found = few_films.held_out_errors(task.ruler(), test)
    result = {"arm": cell.arm, "number": cell.films, "seed": cell.seed, **found}
    result["seconds"] = round(time.monotonic() - began, 1)
    path = Utility.cell_result(run, (cell.name, 0), name)
    write_atomic(path, json.dumps(result, allow_nan=False))
    with suppress(OSError):  # an NFS keeps the name of a file that is open still
        remove_folder(folder / "checkpoints")
    return float(np.abs(found["errors"]).mean())


def merge(run: Run, name: str) -> dict[str, Any]:
    """Makes the table and the curves from all cells, and the report again where there is one.

    Raises:
        ValueError: when a cell is missing, or measured other films than the first.
    """
    import pandas as pd

    from hpc_hipgen.comparisons.learning_curve import COLUMNS, learning_curve
    from hpc_hipgen.evaluation import figures, results

    settings, found = Utility.saved(run, name), []
    for item in Utility.items(run, name) or []:
        path = Utility.cell_result(run, item, name)
        if not path.is_file():
            raise ValueError(f"{path}: missing; start it again")
        found.append(read_json(path))
        if found[-1]["films"] != found[0]["films"]:
            raise ValueError(f"{path}: measured other films than the first; remove its folder")
    dogs = results.dogs_of(results.manifest_table(run.path("data", "manifest.csv")))
    lines = learning_curve(found, [dogs[film] for film in found[0]["films"]], run.config.seed)
    folder, table = Utility.path(run, name), pd.DataFrame(lines, columns=list(COLUMNS))
    label = results.row_label(settings.row, run)
    summary: dict[str, Any] = {"label": label, "settings": settings.model_dump(), "lines": lines}
    summary["test_films"] = len(found[0]["films"])
    write_atomic(folder / "curve.svg", figures.svg(figures.learning_curves(lines)))
    write_atomic(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    write_atomic(folder / "table.csv", table.to_csv(index=False, float_format="%.4f"))
    print(table.round(2).to_string(index=False), flush=True)
    if run.done("report"):
        from jobs.report import report

        report(run, force=True)
    return {"cells": len(found)}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = documented_parser("utility", __doc__)
    parser.add_argument("run", help="run folder, or its name")
    parser.add_argument("settings", nargs="*", default=[], metavar="key=value", help="(below)")
    parser.add_argument("--name", default="utility", help="of the folder in RUN/utility (utility)")
    parser.add_argument("--site", help="a file of configs/site/ (default: $HIPGEN_SITE, then auto)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    options = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    return status_of(lambda: _utility(options))


def _utility(options: argparse.Namespace) -> int:
    check_name(options.name)
    site = load_site(options.site)
    run = Run(site.run_folder(options.run))
    saved = Utility.load(run, options.name)
    settings = saved if saved and not options.settings else plan(run, options.settings)
    note = f"{len(settings.cells(run))} rulers, {settings.row}"
    return settings.start(run, options.name, site, options.dry_run, note)


if __name__ == "__main__":
    sys.exit(main())
