"""Draws and measures a grid of sampling settings of a finished run: which are best?

    python -m jobs.sweep results/llcm model=stable_diffusion 'guidance=[1,1.25,1.5,2]'
    python -m jobs.sweep results/llcm 'model=[feedback,llcm]' 'steps=[4,8,25]' --name steps
    python -m jobs.sweep results/llcm model=stable_diffusion 'checkpoint=[12000,export]'
    python -m jobs.sweep results/llcm 'model=[feedback,llcm]' --split even --name even

  model       a generator of the run, all but dall_e: stable_diffusion, llcm, lora, unclip, ...;
              default: all that the run has. The teacher after feedback is `feedback`, before it
              `stable_diffusion`
  checkpoint  export, or images seen of a kept checkpoint (RUN/MODEL/checkpoints), whose weight
              average is used; default: export. The last two are kept, and more with
              `keep_images` in a model's training
  solver      ddim, leapfrog, paper: for the teachers; a student has its own. `python -m
              jobs.solvers` compares them, and others, with what they should arrive at
  steps       default: those of the run's own rows
  guidance    diffusers' scale, 1 is without; a student takes those that it was trained for, an
              LCM-LoRA none

Every value may be one or a list. All combinations are drawn for the same captions, each image from
the same seed in every cell. They are those of the split `validation`: settings that are chosen on
the test captions make the report's numbers too good. `--split even` draws for 120 captions of no
film, their angles spread evenly from 58 to 122 degrees: few films have hips far below the mean, and
a generator may be right on all others and wrong on those. `--split fresh`, of a run on phantoms,
draws for 240 captions of no film with the angles of the phantoms' population: look there last, once
all is chosen. Of a run on phantoms the first cell of both is `ruler`, phantoms with these angles,
measured. Here the cells run one after another, under Slurm as an array. A second start does only
what is missing. Afterwards:

  RUN/sweeps/NAME/table.csv    a line for each cell: errors in degrees, correlation, images refused;
                               also by band of the angle asked for (FCI's, and below 80 degrees)
  RUN/sweeps/NAME/sweep.svg    mean absolute error and r against guidance, or against steps
  RUN/sweeps/NAME/cells/       images and measurements

With 31 captions, two cells that differ by a few tenths of a degree do not differ.
Exit status: 0 done or submitted, 1 a stage failed, 2 a mistake in the command, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import documented_parser, status_of
from hpc_hipgen.cluster.site import load_site
from hpc_hipgen.comparisons.cells import check_name
from hpc_hipgen.comparisons.ready import EXPORT, check_ready, checkpoint_folder
from hpc_hipgen.comparisons.sampling_grid import CAPTIONS, MADE, RULER, Cell, Sweep, plan
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import write_atomic
from hpc_hipgen.generators.drawing import Drawer, OneDrawer, drawer_of, drawn, with_subjects
from hpc_hipgen.pipeline import Item
from hpc_hipgen.rows import model_rows, row_settings
from hpc_hipgen.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from hpc_hipgen.radiograph.layouts import Films


def draw_and_measure(run: Run, name: str, todo: Sequence[Item]) -> int:
    """Draws and measures cells of a sweep; returns how many were done now."""
    from hpc_hipgen.rulers.ruler import ruler_of
    from hpc_hipgen.training.engine import device

    sweep = Sweep.saved(run, name)
    cells = {cell.name: cell for cell in sweep.cells}
    films = _captioned(run, sweep.split)
    ruler = ruler_of(run, device().type)
    drawers = OneDrawer(partial(_drawer, run))
    for number, item in enumerate(sorted(todo), 1):
        cell = cells[item[0]]
        line = _draw_and_measure(run, name, sweep.split, cell, films, drawers, ruler)
        print(f"sweep {number}/{len(todo)}  {cell.name}: {line}", flush=True)
    return len(todo)


def _captioned(run: Run, split: str) -> Films:
    """The films, or what stands in their place, whose captions are drawn for."""
    from hpc_hipgen.radiograph.layouts import read_manifest
    from hpc_hipgen.radiograph.made_captions import CAPTION_SETS, made_captions

    data = run.path("data")
    if split in MADE:
        learnt = read_manifest(data, "train", nominal_only=True).prompt_class
        return made_captions(CAPTION_SETS[split], run.config.seed, sorted(set(learnt.tolist())))
    return read_manifest(data, split, nominal_only=True)


def _drawer(run: Run, model: str, checkpoint: str) -> Drawer:
    from hpc_hipgen.generators.sampling import PipelineDrawer, load_average

    drawer = drawer_of(run, model)
    if checkpoint != EXPORT:
        folder = checkpoint_folder(run, model, checkpoint)
        assert isinstance(drawer, PipelineDrawer), f"{model} has no pipeline"
        load_average(drawer.pipeline, folder)
    return drawer


def _draw_and_measure(
    run: Run, name: str, split: str, cell: Cell, films: Films, drawers: OneDrawer, ruler: Any
) -> str:
    """One cell: its samples, unless they are there, then their measurements."""
    from hpc_hipgen.evaluation.measured_files import store_table
    from hpc_hipgen.evaluation.measurements import measured
    from hpc_hipgen.evaluation.samples import read_or_redraw, shard_bytes

    tar = Sweep.path(run, name, "cells", cell.name, "samples.tar")

    def draw() -> None:
        specs, images = _images(run, split, cell, films, drawers)
        write_atomic(tar, shard_bytes(specs, images, synthetic=cell.model != RULER))

    if not tar.is_file():
        draw()
    samples = read_or_redraw(tar, draw)
    table = measured(samples, cell.name, ruler, run.config.evaluation.batch)
    store_table(Sweep.cell_result(run, (cell.name, 0), name), table)
    return f"{len(table)} images"


def _images(
    run: Run, split: str, cell: Cell, films: Films, drawers: OneDrawer
) -> tuple[list[dict[str, Any]], Iterator[np.ndarray]]:
    """What each image of a cell is asked for, and the images."""
    from hpc_hipgen.evaluation.samples import image_specs
    from hpc_hipgen.radiograph.made_captions import CAPTION_SETS, made_phantoms

    config = run.config
    if cell.model == RULER:
        specs = image_specs(config.seed, films, cell.name)
        return specs, made_phantoms(CAPTION_SETS[split], config.data, config.seed, films)
    crossed = {"steps": cell.steps, "guidance": cell.guidance, "solver": cell.solver}
    settings = row_settings(config, model_rows(config, cell.model)[0]) | crossed
    if cell.solver == "leapfrog":
        settings["eta"] = 0.0  # it takes none
    specs = with_subjects(run, cell.model, image_specs(config.seed, films, cell.name, settings))
    return specs, drawn(run, drawers.of(cell.model, cell.checkpoint), specs)


def merge(run: Run, name: str) -> dict[str, Any]:
    """Makes table.csv and sweep.svg from all cells, each once.

    Raises:
        ValueError: when a cell is missing, or holds other images than the first.
    """
    import pandas as pd

    from hpc_hipgen.evaluation import figures
    from hpc_hipgen.evaluation.bands import BANDS
    from hpc_hipgen.evaluation.measured_files import load_table

    sweep = Sweep.saved(run, name)
    lines, first = [], None
    for cell in sweep.cells:
        path = Sweep.cell_result(run, (cell.name, 0), name)
        if not path.is_file():
            raise ValueError(f"{path}: missing; start the sweep again")
        table = load_table(path)
        keys = list(table["key"])
        first = keys if first is None else first
        if keys != first or set(table["row"]) != {cell.name}:
            raise ValueError(f"{path}: holds other images than the first cell; remove its folder")
        lines.append(_scores(cell, table))
    table = pd.DataFrame(lines)
    figure = figures.svg(figures.sweep([x for x in lines if x["model"] != RULER]))
    write_atomic(Sweep.path(run, name, "sweep.svg"), figure)
    content = table.to_csv(index=False, float_format="%.4f")
    write_atomic(Sweep.path(run, name, "table.csv"), content)
    of_bands = [name for name in lines[0] if name.endswith(tuple(f"_{band}" for band in BANDS))]
    shown = table.drop(columns=["images", *of_bands])
    print(shown.round(2).to_string(index=False), flush=True)
    return {"cells": len(lines), "images": len(first or [])}


def _scores(cell: Cell, table: pd.DataFrame) -> dict[str, Any]:
    """One line of the table; `mae` and `r` are the means of both sides."""
    from hpc_hipgen.evaluation.bands import BANDS, bands_of
    from hpc_hipgen.evaluation.faithfulness import faithfulness
    from hpc_hipgen.radiograph.geometry import PATIENT_SIDES

    found = {s: faithfulness(table[f"asked_{s}"], table[f"measured_{s}"]) for s in PATIENT_SIDES}
    refused = table[[f"measured_{s}" for s in PATIENT_SIDES]].isna().any(axis=1)
    line: dict[str, Any] = vars(cell) | {"images": len(table), "refused": int(refused.sum())}
    for key in ("mae", "r"):
        values = [found[s][key] for s in PATIENT_SIDES]
        known = [value for value in values if value is not None]
        line[key] = sum(known) / len(known) if len(known) == len(values) else None
    line |= {f"{key}_{s}": found[s][key] for key in ("mae", "r", "bias") for s in PATIENT_SIDES}
    bands = bands_of(table)
    return line | {
        f"{key}_{band}": bands[band][key] if band in bands else None
        for band in BANDS
        for key in ("n", "mae", "bias")
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = documented_parser("sweep", __doc__)
    parser.add_argument("run", help="run folder, or its name")
    parser.add_argument(
        "grid", nargs="*", default=[], metavar="key=[a,b]", help="what to cross (below)"
    )
    parser.add_argument("--name", default="grid", help="of the folder in RUN/sweeps (grid)")
    parser.add_argument("--split", choices=CAPTIONS, help="whose captions (validation)")
    parser.add_argument("--site", help="a file of configs/site/ (default: $HIPGEN_SITE, then auto)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    options = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    return status_of(lambda: _sweep(options))


def _sweep(options: argparse.Namespace) -> int:
    check_name(options.name)
    site = load_site(options.site)
    run = Run(site.run_folder(options.run))
    check_ready(run)
    sweep = _planned(run, options)
    note = f"{len(sweep.cells)} cells, captions: {sweep.split}"
    if sweep.split == "test":
        note += "\nnote: settings chosen on the test captions make the report's numbers too good"
    return sweep.start(run, options.name, site, options.dry_run, note)


def _planned(run: Run, options: argparse.Namespace) -> Sweep:
    """The sweep that was asked for: a new grid, or the one that was saved under this name."""
    if options.grid:
        sweep, notes = plan(run, options.grid, options.split or CAPTIONS[0])
        for note in notes:
            print(f"note: {note}")
        return sweep
    saved = Sweep.load(run, options.name)
    if saved is None:
        raise ConfigError(
            f"{Sweep.path(run, options.name)}: no such sweep; give a grid such as "
            "steps=[10,20] guidance=[1,1.5,2]"
        )
    if options.split not in (None, saved.split):
        raise ConfigError(
            f"--split {options.split}: {options.name} was drawn for captions of {saved.split}; "
            "give a grid, and another --name"
        )
    return saved


if __name__ == "__main__":
    sys.exit(main())
