"""Stage `prepare`: films or phantoms become the data folder of a run."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.dataset import Film
    from hpc_hipgen.run import Run

HELP = """\
Stage `prepare`: draw the phantoms, or read and check the films, and cut the views.

Writes RUN/data (manifest.csv, images/, and one layout per generator under layouts/) under a
temporary name and renames it at the end, then RUN/stages/prepare.json. When that marker is there,
the stage does nothing.

What is made is set by `seed` and `data` of RUN/config.yaml:
  source          phantom: drawn radiographs with exact landmarks; films: your own
  films           folder of PNG, JPEG or DICOM files (8 or 16 bits, MONOCHROME1 or 2, colour)
  landmarks       CSV (image, side, head_x, head_y, head_radius, rim_x, rim_y; optional
                  norberg_angle, dog, split, prompt_class) or COCO keypoints;
                  default: landmarks.csv in the folder
  train, validation, test   phantoms to draw; for films, the proportions in which dogs are split
  resolution, head_distance, views   size of the square views, distance between the femoral
                  heads as a fraction of it, crops of each training film

Norberg angles are computed from the landmarks. A stated angle that differs by more than half a
degree, a landmark outside its image, a missing or truncated file, ...: all problems are listed at
once, each with its file and row, nothing is written, and the exit status is 2.
DICOM attributes are dropped; text burned into the pixels is kept: mask it before sharing.
"""


def prepare(run: Run) -> None:
    """Make the data folder of a run, unless it is there already.

    Raises:
        FilmErrors: all that is wrong with the films; nothing is written.
    """
    if run.done("prepare"):
        print("prepare: done already", flush=True)
        return
    from hpc_hipgen.radiograph.dataset import ViewSettings, write_dataset
    from hpc_hipgen.radiograph.landmark_table import SPLITS
    from hpc_hipgen.run import atomic_folder

    data = run.config.data
    films = _films(run)
    settings = ViewSettings(data.resolution, data.head_distance, data.views, run.config.seed)
    with atomic_folder(run.path("data")) as folder:
        rows, budget = write_dataset(folder, films, settings)
    films_of = Counter(film.split for film in films)
    views_of = Counter(row["split"] for row in rows)
    for split in (split for split in SPLITS if films_of[split]):
        print(f"prepare: {split}: {films_of[split]} films, {views_of[split]} views")
    for line in budget.lines():
        print(f"prepare: {line}", flush=True)
    run.mark_done("prepare", films=dict(films_of), views=dict(views_of))


def _films(run: Run) -> list[Film]:
    """The films of a run's settings, validated."""
    from hpc_hipgen.radiograph.dataset import film_files, phantom_films, unlisted_films

    data = run.config.data
    counts = {"train": data.train, "validation": data.validation, "test": data.test}
    if data.source == "phantom":
        return list(phantom_films(run.config.seed, counts, data.resolution))
    films = film_files(data.films, data.landmarks, counts, run.config.seed)
    unlisted = unlisted_films(data.films, films)
    if unlisted:
        shown = ", ".join(unlisted[:3]) + (", ..." if len(unlisted) > 3 else "")
        print(f"prepare: {len(unlisted)} films without landmarks are left out: {shown}")
    return list(films)


def main(arguments: list[str] | None = None) -> int:
    """Run the stage on one run folder; the exit status is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.prepare",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, metavar="RUN", help="run folder (config.yaml)")
    options = parser.parse_args(arguments)

    from hpc_hipgen.run import Run

    try:
        prepare(Run(options.run))
    except ValueError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
