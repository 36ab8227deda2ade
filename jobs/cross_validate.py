"""Cross-validation by dog of a film ruler that learns from a lab's films.

    FILMS=folder bash sbatch/lab_ruler.sh                        all stages
    python -m jobs.cross_validate --run results/lab_ruler-folder          all folds, then the report
    python -m jobs.cross_validate --run results/lab_ruler-folder --fold 2   one fold (from 1)

Each fold trains on the films of all other dogs, among drawn scenes, from the ruler that was trained
on drawings alone, and measures its own films with both rulers. RUN/cross_validation/fold-0, of the
first one, and so on hold checkpoints, metrics.jsonl and measurements.json; an interrupted fold goes
on from its last checkpoint. RUN/report then has the errors against the annotators, before and
after, of every fold and of all (cross_validation.md and .json), and a line for each hip (hips.csv).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_hipgen.arguments import add_run, documented_parser, open_run
from hpc_hipgen.files import write_atomic
from hpc_hipgen.pipeline import CROSS_VALIDATION, Item, check_before, fold_measurements, folds
from hpc_hipgen.run import Run
from hpc_hipgen.tables import csv_text


def measure_folds(run: Run, items: Sequence[Item]) -> None:
    """Trains and measures some folds, each unless it is measured already.

    Raises:
        ValueError: for a run without a lab's films.
    """
    from hpc_hipgen.rulers.lab_ruler import fold_task, measure_held_out
    from hpc_hipgen.training import loop
    from hpc_hipgen.training.engine import init_distributed, rank

    section = _section(run)
    init_distributed()
    for item in items:
        path, fold = fold_measurements(run, item), item[1]
        if path.is_file():
            continue
        title = f"fold {fold + 1} of {section.folds}"
        task, held_out = fold_task(run, fold)
        loop.train(task, section.training, path.parent, seed=run.config.seed, title=title)
        if rank() == 0:
            hips = measure_held_out(run, task, held_out)
            write_atomic(path, json.dumps(hips, indent=1, allow_nan=False))


def report(run: Run) -> dict[str, Any]:
    """Writes the report and prints it; returns figures for the stage's record."""
    from hpc_hipgen.rulers import cross_validation

    hips = cross_validation.measured_hips(run)
    figures = cross_validation.figures_of(run, hips)
    folder, text = run.path("report"), cross_validation.to_markdown(hips, figures)
    write_atomic(folder / "hips.csv", csv_text(hips, cross_validation.COLUMNS))
    write_atomic(folder / "cross_validation.json", json.dumps(figures, indent=1, allow_nan=False))
    write_atomic(folder / "cross_validation.md", text)
    print(text, end="", flush=True)
    return {name: figures["after"][name] for name in ("films", "dogs", "refused", "mae", "bias")}


def _section(run: Run) -> Any:
    if run.config.lab_ruler is None:
        raise ValueError(f"{run.folder}: this experiment has no lab_ruler")
    return run.config.lab_ruler


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    parser = documented_parser("cross_validate", __doc__)
    add_run(parser)
    parser.add_argument("--fold", type=int, help="from 1; default: all folds, then the report")
    given = parser.parse_args(arguments)
    from hpc_hipgen.training.outcome import exit_status

    def work() -> None:
        run = open_run(given.run)
        count = _section(run).folds
        if given.fold is not None and not 1 <= given.fold <= count:
            raise ValueError(f"--fold {given.fold}: not within 1..{count}")
        check_before(run, CROSS_VALIDATION)
        chosen = folds(run) if given.fold is None else [("fold", given.fold - 1)]
        measure_folds(run, chosen)
        if given.fold is None:
            report(run)

    return exit_status(work, Path(given.run))


if __name__ == "__main__":
    sys.exit(main())
