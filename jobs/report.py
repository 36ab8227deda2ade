"""The report stage: merges the evaluation of a run into one page and one table of numbers.

    python -m jobs.report --run results/llcm

Writes report/ (report.html, metrics.json, table1.csv, figures/) and tensorboard/report; where real
films were measured, also report/films.csv, one line a hip, which is printed too; where copies of
training films were looked for, report/copies.csv, one line for each drawing that is called one,
with the film that it is nearest to (a head alone: none is). Both tables name films. The model cards
beside the exports get the scores.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc_hipgen.arguments import add_run, documented_parser, open_run, status_of
from hpc_hipgen.evaluation.metrics_file import read_metrics
from hpc_hipgen.evaluation.real_films import film_lines
from hpc_hipgen.files import sha256_of
from hpc_hipgen.pipeline import begun_rows, stages
from hpc_hipgen.rows import FEATURE_ROWS
from hpc_hipgen.run import Run
from hpc_hipgen.tracking import tracked

FILM_PICTURES = ("closest_pairs", "samples")
"""Figures that show films of the data set."""


def report(run: Run, force: bool = False) -> Path:
    """Makes the report unless there is one of the same evaluation; returns its report.html.

    ``force`` makes it again all the same. Raises ValueError when nothing was
    evaluated, or a sample shard was left out.
    """
    page = run.path("report", "report.html")
    evaluated = _evaluated(run)
    marker = run.done("report")
    if marker and marker.get("evaluated") == evaluated and page.is_file() and not force:
        return page
    begun_rows(run)  # raises before what takes seconds to import
    from hpc_hipgen.evaluation.model_card import write_cards
    from hpc_hipgen.evaluation.report import write_report

    page = write_report(run)
    write_cards(run)
    _track(run)
    if all(stage.done(run) for stage in stages(run.config) if stage.items):
        run.mark_done("report", evaluated=evaluated)
    else:  # what is measured later belongs into it, too
        run.unmark("report")
        print("report: of what is measured so far; the stage itself is not done yet", flush=True)
    for line in film_lines(run):
        print(line, flush=True)
    return page


def whole_report(run: Run) -> Path:
    """The stage.

    Raises:
        RuntimeError: when the report lacks what is not sampled or measured yet.
    """
    page = report(run)
    if run.done("report") is None:
        raise RuntimeError(f"{page}: lacks shards; start again, and they are made first")
    return page


def _track(run: Run) -> None:
    """The scores and figures for Weights & Biases, where it is configured.

    What shows real films stays here unless `logging.wandb.films` lets it go.
    """
    wandb, of_films = run.config.logging.wandb, run.config.data.source == "films"
    withheld = wandb and not wandb.films and (of_films or run.config.evaluation.films)
    with tracked(run, "report") as tracker:
        metrics = read_metrics(run)
        scores = {
            f"{row}/{key}_{side}": score[key]
            for row, sides in metrics["faithfulness"].items()
            for side, score in sides.items()
            for key in ("r", "mae", "bias", "failed")
            if score[key] is not None
        }
        tracker.log(None, scores)
        figures = {p.stem: p for p in sorted(run.path("report", "figures").glob("*.png"))}
        if withheld and of_films:
            figures = {name: path for name, path in figures.items() if name not in FILM_PICTURES}
        tracker.pictures(figures)
        if withheld:
            print(
                "report: it shows real films, so Weights & Biases gets its scores and the figures "
                "without films (logging.wandb.films=true: all of it)",
                flush=True,
            )
            return
        tracker.artefact("report", run.path("report"))


def _evaluated(run: Run) -> dict[str, str]:
    """SHA-256 of the measurements and features of each row: a report of others is out of date."""
    found = {}
    for row in (*run.rows(), *FEATURE_ROWS):
        files = sorted(run.path("evaluation", row).glob("shard-*"))
        hashes = [f"{p.name} {sha256_of(p)}" for p in files if p.suffix in (".parquet", ".npz")]
        if hashes:
            found[row] = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    parser = documented_parser("report", __doc__)
    add_run(parser)
    parser.add_argument("--force", action="store_true", help="write it again")
    given = parser.parse_args(arguments)
    return status_of(lambda: _report(given.run, given.force), ValueError)


def _report(name: str, force: bool) -> int:
    """Makes the report, or not, and says where it is; returns 0."""
    run = open_run(name)
    there = run.done("report")
    page = report(run, force)
    if there and run.done("report") == there:  # made earlier: then nothing was printed above
        for line in film_lines(run):
            print(line)
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
