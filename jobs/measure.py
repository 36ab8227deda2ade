"""Measures the Norberg angles of radiographs of dogs' hips, or says why it does not.

    python -m jobs.measure film.png                       one film
    python -m jobs.measure clinic/ 'more/*.dcm'           folders (with what lies below) and globs
    python -m jobs.measure films/ --out angles            results to another folder
    python -m jobs.measure films/ --landmarks films/landmarks.csv    and compares with a person's
    python -m jobs.measure --check                        what the ruler does with pictures that are
                                                          no films, and with phantoms

PNG, JPEG, TIFF and DICOM, 8 or 16 bits, either polarity, any size above 96 pixels, whole
ventrodorsal films, upright, turned by up to 15 degrees. No landmarks are needed. A chest film, a
photograph, a black image or a film with one hip only is refused with the reason.

Written to the --out folder, unless a table of other films lies there:
  measurements.csv    a line a film: angles and FCI bands of the patient's left and right hip
                      (at the image's right and left, unless DICOM's PatientOrientation says
                      otherwise: patient_at_right, sides_from), uncertainties, landmarks in pixels
  measurements.json   the same with what is known of the ruler
  overlays/           a picture a film with the circles, rim points and angles (--no-overlays: none)
                      that shows the film unmasked, names and dates too: keep it like the film

How to read a line: patient_left 101.3, uncertainty_left 1.8 says that the angle of the left hip is
101.3 degrees and that 95 % of drawn hips that looked so clear were within 1.8 degrees; real films
may be less kind. fci_left is the band A to E in which the angle falls, no FCI grade. Where status
is `uncertain`, a hip is known to no better than 12 degrees, and the reason says which: look at its
circle and rim point in the overlay before you use its angle. Where it is `refused`, the reason says
what was missed; `unreadable` are files that are damaged or no images. A drawing of this program
that is marked as such, or what DICOM calls Synthetic Data, is measured and named, and its line says
True in the column `synthetic`.

The ruler (--ruler) is a folder that `bash sbatch/film_ruler.sh` makes or, from films of your own,
`sbatch/lab_ruler.sh`; without one, that of results/reference/film_ruler. --check writes nothing; it
shows the ruler 40 pictures that are no films, of which it should refuse 38, and 200 phantoms, of
which it should refuse one at most.
Exit status: 0 all files were read (refused films included), 1 some could not be read, a picture not
be written (a full disk, say), or the check was not passed, 2 nothing was done because the command
is wrong, 130 interrupted (Ctrl-C, SIGTERM). When it is stopped, the tables hold what was measured
until then. Not for diagnosis or breeding decisions.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import check_out, documented_parser
from hpc_hipgen.rulers.film_measuring import (
    OVERLAYS,
    RESULTS,
    SHIPPED_RULER,
    TABLE,
    find_films,
    measure_files,
)
from hpc_hipgen.tables import csv_text, printable
from hpc_hipgen.training.interruption import terminable

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.geometry import Landmarks
    from hpc_hipgen.rulers.film_ruler import FilmRuler

OWN_RULER = Path("results/film_ruler/film_ruler/export")
"""What sbatch/film_ruler.sh makes, in the folder where it was called."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the head of the module for the exit status."""
    given = _parse(arguments)
    with terminable():
        try:
            given.ruler = given.ruler or _default_ruler()
            return _check(_ruler(given.ruler)) if given.check else _measure(given)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


def _default_ruler() -> Path:
    """The one that was made here, or where this site has its runs, or that of the program."""
    from hpc_hipgen.cluster.site import load_site

    own = (OWN_RULER, load_site().runs() / OWN_RULER.relative_to("results"))
    return next((folder for folder in own if folder.is_dir()), SHIPPED_RULER)


def _measure(given: argparse.Namespace) -> int:
    """Measures the films that the command line names; returns the exit status."""
    files = find_films(given.films, given.out)
    known = _annotated(given.landmarks, files) if given.landmarks else {}
    ruler = _ruler(given.ruler)
    _check_out(given.out, files)
    print(f"{len(files)} files, measured with the ruler of {given.ruler}", file=sys.stderr)
    lines: list[dict[str, Any]] = []
    status = 0
    keep = partial(_write_table, given.out, lines)
    try:
        measure_files(files, ruler, given.out, given.batch, not given.no_overlays, lines, keep)
    except (ValueError, OSError) as error:
        print(f"error: {error}; stopped after {len(lines)} of {len(files)} files", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print(f"interrupted after {len(lines)} of {len(files)} files", file=sys.stderr)
        status = 130
    finally:  # whatever stops it, what was measured is kept
        # an earlier call's tables are not exchanged for empty ones
        unread = _kept(lines, given, known, ruler.lab_films) if lines else 0
    return status or unread


def _kept(
    lines: list[dict[str, Any]], given: argparse.Namespace, known: dict, lab_films: int
) -> int:
    """As `_finish`; a disk that takes no more must not lose what hours have measured."""
    from hpc_hipgen.rulers import film_report

    try:
        return _finish(lines, given, known, lab_films)
    except OSError as error:
        print(csv_text(lines, film_report.COLUMNS))
        why = f"{printable(given.out)} takes no tables ({error.strerror or error})"
        print(f"error: {why}; the measurements are printed above", file=sys.stderr)
        return 1


def _check_out(out: Path, films: Sequence[Path]) -> None:
    """Makes the folder of the results before films are measured for nothing.

    Raises:
        ValueError: where nothing can be written in it, or its table has films that would be lost.
    """
    if others := _measured(out) - {printable(film) for film in films}:
        raise ValueError(
            f"--out: {printable(out / TABLE)} has {len(others)} films that are not among these, "
            f"{min(others)} for example; name another folder, or remove this one"
        )
    for folder in (out, *(path for path in [out / OVERLAYS] if path.exists())):
        check_out(folder)


def _measured(out: Path) -> set[str]:
    """The films of an earlier call's table, where there is one that can be read."""
    try:
        text = (out / TABLE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    return {line["film"] for line in csv.DictReader(io.StringIO(text)) if line.get("film")}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = documented_parser("measure", __doc__)
    parser.add_argument("films", nargs="*", metavar="FILES", help="files, folders or globs")
    parser.add_argument(
        "--ruler", type=Path, help=f"default: {OWN_RULER}, or the one that comes with the program"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("measurements"), help="default: measurements"
    )
    parser.add_argument("--landmarks", type=Path, help="CSV or COCO of a person, to compare with")
    parser.add_argument("--no-overlays", action="store_true", help="no pictures")
    parser.add_argument("--check", action="store_true", help="of the ruler; measures no FILES")
    parser.add_argument("--batch", type=int, default=16, help="films measured at once (default 16)")
    given = parser.parse_args(arguments)
    if given.batch < 1:
        parser.error(f"--batch: {given.batch} is not a positive number")
    if bool(given.films) == given.check:
        parser.error("give either FILES to measure or --check")
    return given


def _check(ruler: FilmRuler) -> int:
    from hpc_hipgen.rulers.film_check import verdict

    lines, good = verdict(ruler)
    print(*lines, sep="\n")
    return 0 if good else 1


def _ruler(folder: Path) -> FilmRuler:
    """The ruler of a folder."""
    from hpc_hipgen.rulers.film_ruler import load_film_ruler

    try:
        return load_film_ruler(folder)
    except ValueError as error:
        raise ValueError(f"{error}; `bash sbatch/film_ruler.sh` makes one") from None


def _annotated(table: Path, files: Sequence[Path]) -> dict[str, Landmarks]:
    """Landmarks of a table, in square pixels, by the name under which a film is reported.

    Raises:
        ValueError: all that is wrong with the table, or that it names none of the films.
    """
    from hpc_hipgen.radiograph.films import pixel_aspect
    from hpc_hipgen.radiograph.landmark_table import read_landmark_table

    read = read_landmark_table(table)
    if read.problems:
        raise ValueError("\n".join(read.problems))
    marks = {(table.parent / entry.film).resolve(): entry.landmarks for entry in read.entries}
    known = {
        printable(path): marks[path.resolve()].stretch(pixel_aspect(path))
        for path in files
        if path.resolve() in marks
    }
    if not known:
        raise ValueError(f"{table}: names none of the films (it looks beside itself for them)")
    return known


def _write_table(out: Path, lines: list[dict[str, Any]]) -> None:
    from hpc_hipgen.files import write_atomic
    from hpc_hipgen.rulers.film_report import COLUMNS

    write_atomic(out / TABLE, csv_text(lines, COLUMNS))


def _finish(
    lines: list[dict[str, Any]], given: argparse.Namespace, known: dict, lab_films: int
) -> int:
    """Writes the tables, says how it went; returns the exit status."""
    from hpc_hipgen.files import sha256_of, write_atomic
    from hpc_hipgen.radiograph.films import DRAWN
    from hpc_hipgen.rulers import film_report

    weights = given.ruler / "model.safetensors"
    about: dict[str, Any] = {"ruler": str(given.ruler), "ruler_sha256": sha256_of(weights)}
    text: list[str] = []
    if known:
        text, about["against_landmarks"] = film_report.compare(lines, known)
    _write_table(given.out, lines)
    write_atomic(given.out / RESULTS, film_report.to_json(lines, lab_films, **about))
    count = Counter(line["status"] for line in lines)
    for line in lines:
        if line["status"] != film_report.MEASURED:
            print(f"{line['film']}: {line['status']}: {line['reason']}", file=sys.stderr)
        if line["synthetic"]:
            print(f"{line['film']}: {DRAWN}", file=sys.stderr)
    print(*text, sep="\n", end="\n" if text else "")
    statuses = (film_report.UNCERTAIN, film_report.REFUSED, film_report.UNREADABLE)
    others = ", ".join(f"{count[status]} {status}" for status in statuses)
    table = printable(given.out / TABLE)
    print(f"{count[film_report.MEASURED]} films measured, {others}: {table}")
    return 1 if count[film_report.UNREADABLE] else 0


if __name__ == "__main__":
    sys.exit(main())
