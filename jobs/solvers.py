"""What does a network evaluation buy? Solvers of the teacher, and the LLCM, by number of steps.

    python -m jobs.solvers results/llcm                    all 31 validation captions of the demo
    python -m jobs.solvers results/llcm --captions 8       a quarter of them, and of the time
    sbatch --gpus=1 --wrap 'python -m jobs.solvers results/llcm'

The demo takes some 35 s of one core for each caption. Interrupted? The same command goes on.

Every solver integrates the teacher's probability-flow ODE from the same noise to the cleanest
timestep, for captions of the validation split, without guidance and at the scale of its row in the
report (a teacher with feedback draws without, so there is but one):

  ddim      Euler's method in xbar = z / alpha over s = sigma / alpha; first order
  leapfrog  the two-step leapfrog there; second order
  dpm++2m   DPM-Solver++(2M) of diffusers; second order, in the predicted image
  unipc     UniPC of diffusers, a predictor with a corrector; second order and more

on two spacings: `karras` (even in s^(1/7), fractional timesteps; diffusers rounds them) and
`trailing` (even timesteps from the last one down). The LLCM draws with its own scheduler.

  evaluations   calls of the network for an image; all that a method needs to start counts
  passes        the same, but a call with guidance counts two: the image goes in twice
  final error   RMS distance of the latents to those of the reference: leapfrog, karras, 500
  order         log2 of the error at half the evaluations over this one
  angle error   of the ruler's answer on the image to the angle asked for, degrees
  angle shift   to its answer on the reference's image: what the solver adds

The line with 125 evaluations tells how good the reference is: there a second-order method has
sixteen times the error of 500. An LLCM draws other images on purpose, so it has no final error.
Written to RUN/solvers/ (or --out):

  table.csv, solvers.json    the table; with the ratio of leapfrog to ddim, and the machine
  solvers.svg, solvers.png   final error and angle error against evaluations
  cells/                     latents and angles; a second start computes what is missing

Exit status: 0 done, 2 a mistake in the command, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from hpc_hipgen.arguments import documented_parser, open_run, status_of
from hpc_hipgen.comparisons.ready import check_ready
from hpc_hipgen.config import ConfigError
from hpc_hipgen.files import read_json, write_atomic
from hpc_hipgen.performance import solver_table
from hpc_hipgen.performance.solver_table import Cell
from hpc_hipgen.pipeline import count_films
from hpc_hipgen.run import Run


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = documented_parser("solvers", __doc__)
    parser.add_argument("run", help="run folder, or its name")
    parser.add_argument("--captions", type=int, help="of the validation split (default: all)")
    parser.add_argument("--out", type=Path, help="folder of what is written (RUN/solvers)")
    options = parser.parse_args(arguments)
    command = ["python -m jobs.solvers", *(arguments or sys.argv[1:])]
    return status_of(lambda: _solvers(options, command))


def _solvers(options: argparse.Namespace, command: list[str]) -> int:
    run = open_run(options.run)
    check_ready(run)
    cells = solver_table.cells_of(run)
    count = _captions(run, options.captions)
    folder = options.out or run.path("solvers")
    solver_table.keep_plan(folder, solver_table.plan(run, cells, count))
    draw(run, folder, cells, count)
    print(written(folder, cells, command))
    return 0


def _captions(run: Run, wanted: int | None) -> int:
    """How many captions are drawn; raises ConfigError for more than the split has, or none."""
    manifest = run.path("data", "manifest.csv")
    there = count_films(manifest, "validation")
    if not there:
        raise ConfigError(f"{manifest}: no films in the split validation")
    if wanted is not None and not 1 <= wanted <= there:
        raise ConfigError(f"--captions {wanted}: the validation split has {there}")
    return wanted or there


def draw(run: Run, folder: Path, cells: list[Cell], captions: int) -> None:
    """Computes the cells whose files are missing."""
    todo = [cell for cell in cells if not solver_table.cell_file(folder, cell).is_file()]
    if not todo:
        return
    from hpc_hipgen.evaluation.samples import image_specs
    from hpc_hipgen.generators.sampling import load_pipeline
    from hpc_hipgen.performance.solver_runs import measure
    from hpc_hipgen.radiograph.layouts import read_manifest
    from hpc_hipgen.rulers.ruler import ruler_of
    from hpc_hipgen.training.engine import device

    films = read_manifest(run.path("data"), "validation", nominal_only=True)
    specs = image_specs(run.config.seed, films.take(range(captions)), "solvers", {})
    ruler = ruler_of(run, device().type)
    pipelines: dict[str, Any] = {}
    for number, cell in enumerate(todo, 1):
        if cell.model not in pipelines:
            pipelines[cell.model] = load_pipeline(run.path(cell.model, "export"))
        content = measure(cell, specs, pipelines[cell.model], ruler, run.config.sampling.batch)
        write_atomic(solver_table.cell_file(folder, cell), content)
        print(f"solvers {number}/{len(todo)}  {cell.name}", file=sys.stderr, flush=True)


def written(folder: Path, cells: list[Cell], command: list[str]) -> str:
    """Writes table and plot of cells that are all there; returns what to print."""
    import pandas as pd

    from hpc_hipgen.evaluation import figures
    from hpc_hipgen.performance.hardware import describe

    lines = solver_table.table(folder, cells)
    ratios = solver_table.against_ddim(lines)
    content = {
        "command": " ".join(command),
        "date": time.strftime("%Y-%m-%d"),
        "machine": describe(),
        "plan": read_json(folder / "plan.json"),
        "lines": lines,
        "leapfrog over ddim": ratios,
    }
    figure = figures.solvers(lines)
    write_atomic(folder / "solvers.svg", figures.svg(figure))
    write_atomic(folder / "solvers.png", figures.png(figure))
    table = pd.DataFrame(lines).drop(columns="steps")
    write_atomic(folder / "table.csv", table.to_csv(index=False, float_format="%.5f"))
    write_atomic(folder / "solvers.json", json.dumps(content, indent=1) + "\n")
    shown = table.round(4).to_string(index=False, na_rep="")
    bar = pd.DataFrame(ratios).round(3).to_string(index=False)
    return f"{shown}\n\nfinal error of leapfrog over that of ddim:\n{bar}\n\n{folder / 'table.csv'}"


if __name__ == "__main__":
    sys.exit(main())
