"""Drawn films of a run as DICOM files, marked as synthetic.

    python -m jobs.export --run results/llcm --row llcm_4     one row of the report
    python -m jobs.export --run results/llcm                  every row that a generator drew;
                                                              rows not sampled yet are named

Writes RUN/dicom/ROW/NNNNNN.dcm, one for each image of the row's sample shards: Secondary Capture
with Synthetic Data YES, a made-up patient for each caption, the caption, the angles that were asked
for and, once the row is evaluated, those that were measured. A row that is there is written anew.
No other run has the same patients (provenance/identity.txt).
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


def export_row(run: Run, row: str) -> Path:
    """Writes the DICOM files of a row; returns their folder.

    Raises:
        ValueError: the row holds films, or was not sampled, or a shard cannot be read.
    """
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
    with atomic_folder(run.path("dicom", row)) as folder:
        for number in numbers:
            for sample in read_samples(sample_shard(run, (row, number))):
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
    return run.path("dicom", row)


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
    given = parser.parse_args(arguments)
    return status_of(lambda: _export(given.run, given.row), ValueError, Path(given.run))


def _export(name: str, only: str | None) -> int:
    """Writes the films of one row, or of all, and says where; returns 0."""
    run = open_run(name)
    check_row(only, run.rows())
    for row in [only] if only else drawn_rows(run):
        written = export_row(run, row)
        print(f"{written}: {len(list(written.iterdir()))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
