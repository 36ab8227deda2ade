"""Drawn films of a run as DICOM files, marked as synthetic.

    python -m jobs.export --run results/llcm --row llcm_4     one row of the report
    python -m jobs.export --run results/llcm                  every row that a generator drew;
                                                              rows not sampled yet are named
    python -m jobs.export --run results/llcm --copies         copies of training films, too

Writes RUN/dicom/ROW/NNNNNN.dcm, one for each image of the row's sample shards: Secondary Capture
with Synthetic Data YES, a made-up patient for each caption, the caption, the angles that were asked
for and, once the row is evaluated, those that were measured. A row that is there is written anew.
No other run has the same patients (provenance/identity.txt).

Drawings that the run's report calls copies of training films (report/copies.csv) are left out and
counted: where the films are those of patients, a copy shows one. A run on real films in which
nobody looked for copies is exported whole, and a line says so.
"""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from hpc_hipgen.arguments import add_run, check_row, documented_parser, open_run, status_of
from hpc_hipgen.files import atomic_folder, write_atomic
from hpc_hipgen.pipeline import sample_shard, score_shard, shard_counts, test_films
from hpc_hipgen.rows import ROWS_OF_FILMS
from hpc_hipgen.run import Run
from hpc_hipgen.shards import shard_numbers


def export_row(run: Run, row: str, with_copies: bool = False) -> Path:
    """Writes the DICOM files of a row; returns their folder.

    Without drawings that are called copies of training films, unless they are to come along.

    Raises:
        ValueError: the row holds films, or was not sampled; a shard or the report cannot be read.
    """
    from hpc_hipgen.evaluation.audit import read_copies
    from hpc_hipgen.evaluation.results import row_label
    from hpc_hipgen.evaluation.samples import read_samples
    from hpc_hipgen.radiograph.dicom import DrawnFilm, write_dicom

    if row in ROWS_OF_FILMS:
        raise ValueError(f"--row {row}: holds films, and only what a generator drew is exported")
    numbers = shard_numbers(run.path("samples", row), "tar")
    if not numbers:
        raise ValueError(f"{run.path('samples', row)}: no sample shards; sample the row first")
    whole = shard_counts(run)[row]
    if len(numbers) < whole:
        print(f"{row}: {len(numbers)} of {whole} shards are sampled, the others are left out")
    measured, identity = _measured(run, row), _identity(run)
    if unseen := set(numbers) - set(shard_numbers(run.path("evaluation", row), "parquet")):
        print(f"{row}: {len(unseen)} of {len(numbers)} shards are not measured, their films say so")
    captions = test_films(run)
    assert captions, "a row that is sampled has captions"
    copies, judged = read_copies(run, row)
    _say_copies(run, row, len(copies), judged, with_copies)
    drawn = 0
    with atomic_folder(run.path("dicom", row)) as folder:
        for number in numbers:
            for sample in read_samples(sample_shard(run, (row, number))):
                drawn += 1
                if sample.key in copies and not with_copies:
                    continue
                asked = {name: sample.info[name] for name in ("asked_left", "asked_right")}
                film = DrawnFilm(
                    sample.image,
                    sample.prompt,
                    asked | measured.get(sample.key, {}),
                    title=row_label(row, run),
                    run=identity,
                    row=row,
                    index=sample.info["index"] % captions,
                    number=sample.info["index"] // captions + 1,
                    series=run.rows().index(row) + 1,
                )
                write_dicom(folder / f"{sample.key}.dcm", film)
    _say_unjudged(run, row, drawn, judged)
    return run.path("dicom", row)


def _say_copies(run: Run, row: str, copies: int, judged: int, exported: bool) -> None:
    """Says on the console how many of the judged drawings are called copies, if any."""
    from hpc_hipgen.evaluation.audit import COPIES_FILE

    if copies:
        done = "exported all the same" if exported else "left out (--copies exports them, too)"
        print(
            f"{row}: {copies} of {judged} drawings are called copies of training films and "
            f"{done}; listed in {run.path('report', COPIES_FILE)}"
        )


def _say_unjudged(run: Run, row: str, drawn: int, judged: int) -> None:
    """Says on the console in how many drawings from real films nobody looked for copies, if any."""
    from hpc_hipgen.evaluation.memorisation import LEAST_HELD_OUT

    if run.config.data.source == "films" and judged < drawn:
        print(
            f"{row}: nobody has looked for copies of training films among {drawn - judged} of "
            f"{drawn} drawings, patients may be seen in them (python -m jobs.report --run "
            f"{run.folder} --force looks, with {LEAST_HELD_OUT} validation films or more)"
        )


def _identity(run: Run) -> str:
    """What tells this run's patients from those of all others, 32 hexadecimal digits; kept."""
    path = run.path("provenance", "identity.txt")
    if not path.is_file():
        write_atomic(path, f"{uuid.uuid4().hex}\n")
    return path.read_text().strip()


def drawn_rows(run: Run) -> list[str]:
    """Rows that a generator drew; names those that are not sampled yet on the console.

    Raises:
        ValueError: when there is none.
    """
    rows = [row for row in run.rows() if row not in ROWS_OF_FILMS]
    drawn = [row for row in rows if shard_numbers(run.path("samples", row), "tar")]
    if not drawn:
        raise ValueError(f"{run.path('samples')}: no row of a generator is sampled yet")
    if missing := [row for row in rows if row not in drawn]:
        print(f"not sampled yet, left out: {', '.join(missing)}")
    return drawn


def _measured(run: Run, row: str) -> dict[str, dict[str, float]]:
    """Measured angles by sample; what the ruler refused is left out, and what it has not seen."""
    from hpc_hipgen.evaluation.measured_files import load_table

    found: dict[str, dict[str, float]] = {}
    for number in shard_numbers(run.path("evaluation", row), "parquet"):
        table = load_table(score_shard(run, (row, number))).set_index("key")
        for key, line in table[["measured_left", "measured_right"]].to_dict("index").items():
            known = {str(name): value for name, value in line.items() if math.isfinite(value)}
            found[str(key)] = known
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 2 with one line for a mistake of the user."""
    parser = documented_parser("export", __doc__)
    add_run(parser)
    parser.add_argument(
        "--row", help="row of the report, e.g. llcm_4; default: all that were drawn"
    )
    parser.add_argument(
        "--copies",
        action="store_true",
        help="also drawings that are called copies of training films: do not where these are of "
        "patients, for a copy shows a patient under a made-up name, and as synthetic",
    )
    given = parser.parse_args(arguments)
    return status_of(
        lambda: _export(given.run, given.row, given.copies), ValueError, Path(given.run)
    )


def _export(name: str, only: str | None, with_copies: bool) -> int:
    """Writes the films of one row, or of all, and says where; returns 0."""
    run = open_run(name)
    check_row(only, run.rows())
    for row in [only] if only else drawn_rows(run):
        written = export_row(run, row, with_copies)
        print(f"{written}: {len(list(written.iterdir()))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
