"""Stage `prepare`: draw the phantoms, or read and check the films, and cut the views.

    python -m jobs.prepare --run results/llcm

Writes RUN/data (manifest.csv, images/, and one layout per generator under layouts/) under another
name, RUN/data.partial-..., and renames it at the end, then writes RUN/stages/prepare.json. Started
again before that, it goes on with the next film. When that marker is there, the stage does nothing,
but ends with status 2 where films or landmarks are others by now. Where `evaluation.films` names a
folder of real films, their nominal views go to RUN/films in the same format, all of them in the
split `test`: they are measured as the report's row `films`, and nothing is trained on them. For
`film_ruler`, which has no data set, the scenes that it is trained on are drawn to RUN/scenes
instead, and those of the films of `lab_ruler` are cut to RUN/lab_films, which is to be kept like
the films themselves.

What is made is set by `seed` and `data` of RUN/config.yaml:
  source          phantom: drawn radiographs with exact landmarks; films: your own
  films           folder of PNG, JPEG, TIFF or DICOM files (8 or 16 bits, MONOCHROME1 or 2, colour)
  landmarks       the landmark table, CSV or COCO keypoints (below);
                  default: landmarks.csv in the folder
  train, validation, test   phantoms to draw; for films, the proportions in which dogs are split
  resolution, head_distance, views   size of the square views, distance between the femoral
                  heads as a fraction of it, crops of each training film; half of them are mirrored,
                  but not of films with a letter or text left in them, or in prompt classes 1 to 3
  balance         how much more crops films with rare angles become (0: all as many, 1: as if all
                  angles were equally frequent, within half and four times `views`, their mean)
  even_angles     share of the training phantoms whose angles are even over 58 to 122 degrees
  jitter          share of the full jitter (4 degrees, 3 % of the width, 5 % zoom) of those crops
  warp            degrees by which the angles of a crop with jitter differ from its film's (0: not)
  deidentify      mask text that is burned into films, in any colour and place (default: true)
  keep_markers    but leave the L or R of a side (default: true), where a film is not mirrored
and by `evaluation`:
  films, landmarks   real films to measure, and their landmarks, in the formats above

A landmark table in CSV has a row for each hip, two a film, and these columns:
  image           file of the film, as seen from the folder
  side            image_left or image_right: sides of the image, not of the patient
  head_x, head_y, head_radius   circle of the femoral head, in pixels of the picture as it is shown
                  (EXIF orientations are obeyed); pixel centres are at whole numbers, (0, 0) at
                  the top left, y downwards, the dog's head up
  rim_x, rim_y    craniolateral rim of the acetabulum
  norberg_angle   optional: compared with the landmarks, never used
  dog             optional, for all films or none, a dog in one spelling: films of one dog stay in
                  one split (without the column each film is its own dog, and that is said)
  split           optional: train, validation or test, for all films or none
  prompt_class    optional: 1 to 4 (default 4)
Capital letters in these names are no matter; other columns are not read, and named.
In COCO, an annotation a film has the six keypoints image_left_head, image_left_head_edge (any point
of the circle), image_left_rim, and those of image_right; an image may have dog, split and
prompt_class, and width and height, which must be the film's.

Norberg angles are computed from the landmarks. A stated angle that differs by more than half a
degree, a landmark outside its image, a missing or truncated file, pixels that a picture's header
calls oblong, a film that reads as black, a drawing that is marked as synthetic, one picture under
the names of two dogs, ...: all problems are listed at once, each with its file and row, nothing is
written, and the exit status is 2.
A DICOM film whose pixels are not square is stretched first, with its landmarks; one whose
PatientOrientation has the patient's right at the image's right is mirrored, its L or R masked, and
named in mirrored.csv beside the manifest, or in RUN/lab_films, where left_out.csv names the films
of the folder that have no landmarks.
DICOM attributes and overlay planes are dropped. What was masked in films, and what was found but
left (a side's letter; anything within two head radii of a hip, which somebody has to look at), is
in deidentified.csv beside the manifest, or in RUN/lab_films, and drawn as boxes on the small films
of deidentified.png: look at it, no search finds everything. Names of files and dogs are kept.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen.arguments import add_run, documented_parser, open_run, status_of
from hpc_hipgen.pipeline import row_data
from hpc_hipgen.rows import FILMS_ROW
from hpc_hipgen.tables import printable, shortlist

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hpc_hipgen.config import Data
    from hpc_hipgen.radiograph.film_set import Film
    from hpc_hipgen.run import Run

LEFT_OUT = "left_out.csv"
"""Beside the manifest, or in RUN/lab_films: films of the folder that have no landmarks."""

NOT_MASKED = "prepare: text burned into films is NOT masked (data.deidentify: false)"


def prepare(run: Run) -> None:
    """Make the data folder of a run, unless it is there already.

    Raises:
        FilmErrors: all that is wrong with the films; nothing is written.
        ConfigError: films or landmarks are no longer those that the folder was made from.
    """
    from hpc_hipgen.radiograph.film_sources import (
        check_prepared,
        keep_sources,
        read_films,
        sources,
    )

    check_prepared(run)
    if run.done("prepare"):
        print("prepare: done already", flush=True)
        return
    if run.config.film_ruler:
        _prepare_scenes(run, run.config.film_ruler.dogs)
        return
    data = run.config.data
    films, measured = read_films(run.config)
    left_out = {
        folder: _say_of_files(source, found, folder)
        for source, found, folder in (
            (data.films, films, run.path("data")),
            (run.config.evaluation.films, measured, row_data(run, FILMS_ROW)),
        )
    }
    before = sources(run.config, {"data.films": films, "evaluation.films": measured})
    rows, lines, measured_lines = _write_views(run, films, measured, left_out)
    _say_of_views(data, films, rows, lines)
    if measured:
        print(f"prepare: real films to measure, none of them trained on: {len(measured)}")
        for line in measured_lines:
            print(f"prepare: real films, {line}", flush=True)
    if not data.deidentify and (measured or data.source == "films"):
        print(NOT_MASKED, flush=True)
    made = {
        "films": Counter(film.split for film in films),
        "views": Counter(row["split"] for row in rows),
        "real_films": len(measured),
    }
    keep_sources(run, before)
    run.mark_done("prepare", **made, sources=before)


def _write_views(
    run: Run,
    films: Sequence[Film],
    measured: Sequence[Film],
    left_out: Mapping[Path, Sequence[str]],
) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Write the data folder, and that of the real films to measure.

    Args:
        run: the run.
        films: of the data set.
        measured: real films to measure.
        left_out: names of the films without landmarks, by the folder that lists them.

    Returns:
        The manifest's rows of the first, and what is to be told of either.

    Raises:
        FilmErrors: films to measure that the ruler has learnt from; then neither is there.
    """
    from hpc_hipgen.files import atomic_folder, resumed_folder
    from hpc_hipgen.radiograph.dataset import ViewSettings, dataset_key, list_films, write_dataset
    from hpc_hipgen.radiograph.films import FilmErrors

    data = run.config.data
    settings = ViewSettings(
        data.resolution,
        data.head_distance,
        data.views,
        run.config.seed,
        data.jitter,
        data.warp,
        data.balance,
    )
    key = dataset_key(films, settings)
    measured_lines: list[str] = []
    with resumed_folder(run.path("data"), key, FilmErrors) as (folder, notes):
        rows, budget, masking = write_dataset(folder, films, settings, notes=notes)
        lines = [*budget.lines(), *masking]
        list_films(folder / LEFT_OUT, left_out[run.path("data")])
        if data.source == "films":
            for name in ("ruler", "reward_model"):  # the second one tunes the teacher
                _check_held_out(run, name, folder)
        if measured:
            place = row_data(run, FILMS_ROW)
            with atomic_folder(place) as other:
                _, budget, masking = write_dataset(other, measured, settings)
                list_films(other / LEFT_OUT, left_out[place])
                measured_lines = [*budget.lines(), *masking]
                _check_held_out(run, "ruler", other)
    return rows, lines, measured_lines


def _say_of_views(
    data: Data, films: Sequence[Film], rows: Sequence[dict[str, Any]], lines: Sequence[str]
) -> None:
    """Prints how many films became how many views, and the `lines` that tell of them."""
    from hpc_hipgen.radiograph.landmark_table import SPLITS

    films_of = Counter(film.split for film in films)
    views_of = Counter(row["split"] for row in rows)
    for split in (split for split in SPLITS if films_of[split]):
        dogs = len({film.dog for film in films if film.split == split})
        of = f" of {dogs} dogs" if data.source == "films" else ""
        print(f"prepare: {split}: {films_of[split]} films{of}, {views_of[split]} views")
    if data.balance:
        each = Counter(row["film"] for row in rows if row["split"] == "train").values()
        print(f"prepare: {min(each)} to {max(each)} views a training film, most of rare angles")
    for line in lines:
        print(f"prepare: {line}", flush=True)


def _check_held_out(run: Run, name: str, folder: Path) -> None:
    """Sees that a ruler from elsewhere has not learnt from films that are held out.

    Raises:
        FilmErrors: one line a film of the test split of the data folder that it knows.
    """
    ruler = getattr(run.config, name)
    if ruler is None or ruler.pretrained is None:
        return
    from hpc_hipgen.radiograph.duplicates import (
        fingerprint,
        kept_fingerprints,
        learnt_from,
        seen_before,
    )
    from hpc_hipgen.radiograph.films import FilmErrors
    from hpc_hipgen.radiograph.layouts import read_manifest

    known = learnt_from(ruler.pretrained)
    if known is None:
        print(f"prepare: {ruler.pretrained} has learnt from films and does not say from which: see")
        print("prepare: to it yourself that it measures none of them", flush=True)
        return
    if not known:
        return
    test = read_manifest(folder, "test")
    views = zip(test.film, map(fingerprint, test.images), strict=True)
    whole = kept_fingerprints(folder)
    if seen := seen_before([*views, *((film, whole.get(film, "")) for film in test.film)], known):
        raise FilmErrors(
            [
                f"{film}: the ruler in {ruler.pretrained} has learnt from this film, which is held "
                f"out; give one that has not, or train one ({name}.pretrained=null)"
                for film in seen
            ]
        )


def _prepare_scenes(run: Run, dogs: int) -> None:
    """Draw the scenes that a film ruler is trained on, and cut those of a lab's films."""
    from hpc_hipgen.files import atomic_folder
    from hpc_hipgen.radiograph.dataset import list_films
    from hpc_hipgen.radiograph.film_sources import keep_sources, lab_films, sources
    from hpc_hipgen.radiograph.lab_films import write_lab_films
    from hpc_hipgen.radiograph.scene_store import draw_scenes, write_scenes

    lab = run.config.lab_ruler
    films, folds = lab_films(run.config, lab) if lab else ([], {})
    before = sources(run.config, {"lab_ruler.films": films})
    with atomic_folder(run.path("scenes")) as folder:
        write_scenes(folder, draw_scenes(run.config.seed, dogs))
    print(f"prepare: scenes of {dogs} dogs, a film and a close-up of one hip each", flush=True)
    if lab:
        left_out = _say_of_files(lab.films, films, run.path("lab_films"))
        with atomic_folder(run.path("lab_films")) as folder:
            masking = write_lab_films(folder, films, folds, run.config.seed)
            list_films(folder / LEFT_OUT, left_out)
        alone = "; no two are said to be of one dog" if len(folds) == len(films) else ""
        print(f"prepare: {len(films)} films of {len(folds)} dogs in {lab.folds} folds{alone}")
        print("prepare: splits that a landmark table names are of no account here")
        for line in masking:
            print(f"prepare: {line}")
        print(end="" if run.config.data.deidentify else f"{NOT_MASKED}\n", flush=True)
    made = {"dogs": dogs, "lab_films": len(films), "lab_dogs": len(folds)}
    keep_sources(run, before)
    run.mark_done("prepare", **made, sources=before)


def _say_of_files(folder: Path | None, films: Sequence[Film], place: Path) -> list[str]:
    """Names the films of a folder that have no landmarks, and those that are shown turned.

    Args:
        folder: of the films; None: there is none.
        films: those with landmarks.
        place: folder that will hold the list of the others, `LEFT_OUT`.

    Returns:
        The names of the others, printable.
    """
    from hpc_hipgen.parallel import run_parallel
    from hpc_hipgen.progress import progress
    from hpc_hipgen.radiograph.film_set import unlisted_films
    from hpc_hipgen.radiograph.films import turned_by_exif

    if not folder:
        return []
    if left_out := [printable(name) for name in unlisted_films(folder, films)]:
        print(
            f"prepare: {len(left_out)} films without landmarks are left out: {shortlist(left_out)} "
            f"(all in {printable(place / LEFT_OUT)})"
        )
    looked = run_parallel(turned_by_exif, [folder / film.name for film in films])
    shown_turned = progress(zip(films, looked, strict=True), len(films), "looking for turned films")
    if turned := [printable(film.name) for film, is_turned in shown_turned if is_turned]:
        print(
            f"prepare: {len(turned)} films are turned or mirrored by their EXIF orientation, and "
            f"their landmarks must be those of the picture as it is shown: {shortlist(turned)}"
        )
    return left_out


def main(arguments: list[str] | None = None) -> int:
    """Run the stage on one run folder; the exit status is 2 for bad input."""
    parser = documented_parser("prepare", __doc__)
    add_run(parser)
    given = parser.parse_args(arguments)
    return status_of(lambda: _prepare(given.run), ValueError, Path(given.run))


def _prepare(name: str) -> int:
    from hpc_hipgen.run import check_place

    run = open_run(name)
    check_place(run.folder, run.config)
    prepare(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
