"""From films to the data folder of a run: views are cut, and written with manifest and layouts.

Everything is a function of the settings and the seed alone: the number of processes, the order of
files in a folder and other films of the set change no pixel of a view.
"""

import hashlib
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpc_hipgen.files import write_atomic
from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph import made_films
from hpc_hipgen.radiograph.balance import views_by_rarity
from hpc_hipgen.radiograph.captions import caption
from hpc_hipgen.radiograph.deidentify import Masking
from hpc_hipgen.radiograph.duplicates import keep_fingerprints
from hpc_hipgen.radiograph.film_set import Film
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.radiograph.landmark_table import SPLITS
from hpc_hipgen.radiograph.layouts import write_layouts
from hpc_hipgen.radiograph.made_films import Made
from hpc_hipgen.radiograph.views import make_view, resolution_budget
from hpc_hipgen.tables import csv_text, shortlist

MIRRORED = "mirrored.csv"
"""Of a data folder or a lab's: the films that were mirrored, by name."""


@dataclass(frozen=True)
class ViewSettings:
    """How films become views.

    Attributes:
        resolution: pixels, square.
        head_distance: distance between the head centres as a fraction of the view's width.
        views: views of a training film; the first is nominal, the others are jittered. Films of
            the other splits have the nominal one only.
        balance: see `balance.views_by_rarity`; above 0, `views` is a mean.
        seed: of the jitter.
        jitter: share of the full jitter of `views.make_view`, 0 to 1.
        warp: standard deviation in degrees by which the angles of a film's jittered views differ.
    """

    resolution: int
    head_distance: float
    views: int
    seed: int
    jitter: float = 1.0
    warp: float = 0.0
    balance: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Degrees of Norberg angle that a pixel is worth, per film (n,), and D in pixels (n,)."""

    film_degrees: np.ndarray
    view_degrees: np.ndarray
    film_distance: np.ndarray
    view_distance: float

    def lines(self) -> list[str]:
        """What it says, for people."""
        film, view, distance = self.film_degrees, self.view_degrees, self.film_distance
        return [
            f"resolution, films: {np.median(distance):.0f} px between the heads (least"
            f" {distance.min():.0f}), one pixel is {np.median(film):.2f} degrees (worst"
            f" {film.max():.2f})",
            f"resolution, views: {self.view_distance:.0f} px between the heads, one pixel is"
            f" {np.median(view):.2f} degrees (worst {view.max():.2f})",
        ]


def write_dataset(
    folder: Path,
    films: Sequence[Film],
    settings: ViewSettings,
    processes: int | None = None,
    notes: Path | None = None,
) -> tuple[list[dict[str, Any]], Budget, list[str]]:
    """Fill a data folder: images, manifest and layouts (see layouts.py).

    Of films on disk, also their fingerprints; of those that are masked, the report:
    `deidentified.csv` and, as a picture, `.png`; of those that are mirrored, a list (`MIRRORED`).

    Args:
        folder: exists, and is empty or what an earlier start with the same `dataset_key` has left;
            should be a temporary one that is renamed afterwards.
        films: in any order; numbered within their split by name.
        settings: size and number of the views.
        processes: default: the CPUs that this process may use.
        notes: folder in which films are noted whose views are there; those that an earlier start
            has noted are taken as they are.

    Returns:
        The manifest's rows, the resolution budget, and what was mirrored and masked, in words.
    """
    tasks = list(_tasks(folder, notes, films, settings))
    for split in {film.split for film in films}:
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "layouts", ignore_errors=True)
    made, masking = [], Masking()
    working = run_parallel(_make_film, tasks, processes)
    for film in progress(working, len(tasks), "preparing films"):
        masking.add(film.searched)
        made.append(replace(film, searched=None))
    rows = [row for film in made for row in film.rows]
    write_layouts(folder, rows)
    if whole := {film.name: film.pixels for film in films if film.pixels}:
        keep_fingerprints(folder, whole)
    nominal = [Landmarks.from_flat(film.rows[0]) for film in made]
    budget = Budget(
        film_degrees=np.array([film.degrees for film in made]),
        view_degrees=np.array([resolution_budget(landmarks) for landmarks in nominal]),
        film_distance=np.array([film.distance for film in made]),
        view_distance=settings.head_distance * settings.resolution,
    )
    mirrored = list_mirrored(folder, [film.rows[0]["film"] for film in made if film.mirrored])
    return rows, budget, [*mirrored, *masking.write(folder)]


def dataset_key(films: Sequence[Film], settings: ViewSettings) -> str:
    """Of what `write_dataset` makes; another one for other films, settings or code."""
    digest = hashlib.sha256(repr((settings, sorted(map(repr, films)))).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def list_mirrored(folder: Path, films: Sequence[str]) -> list[str]:
    """Lists films that were mirrored in `MIRRORED`; what is said of them, nothing of none."""
    list_films(folder / MIRRORED, films)
    if not films:
        return []
    return [
        f"{len(films)} films have the patient's right at the image's right by PatientOrientation, "
        f"and were mirrored with their landmarks: {shortlist(films)} (all in {MIRRORED})"
    ]


def list_films(path: Path, films: Sequence[str]) -> None:
    """Writes films in order, one a line below `film`; without any, there is no file."""
    if films:
        write_atomic(path, csv_text(({"film": name} for name in sorted(films)), ["film"]))
    else:
        path.unlink(missing_ok=True)  # of an earlier start


FilmToMake = tuple[Path, Path | None, Film, int, ViewSettings]


def _tasks(
    folder: Path, notes: Path | None, films: Sequence[Film], settings: ViewSettings
) -> Iterator[FilmToMake]:
    for split in SPLITS:
        chosen = sorted((f for f in films if f.split == split), key=lambda film: film.name)
        counts = _views_of(chosen, settings)
        for number, (film, count) in enumerate(zip(chosen, counts, strict=True)):
            yield folder, notes, film, number, replace(settings, views=count)


def _views_of(films: Sequence[Film], settings: ViewSettings) -> list[int]:
    """How many views each film of a split becomes."""
    if not films or films[0].split != "train":
        return [1] * len(films)
    if not settings.balance:
        return [settings.views] * len(films)
    angles = [film.nominal_angles() for film in films]
    both = np.array([(found.image_left, found.image_right) for found in angles])
    return views_by_rarity(both, settings.views, settings.balance).tolist()


def _make_film(task: FilmToMake) -> Made:
    """Write the views of one film, unless an earlier start has."""
    folder, notes, film, number, _ = task
    name = f"{film.split}-{number:05d}"
    made = made_films.kept(notes, name, folder) if notes else None
    if made is None:
        made = _write_views(task)
        if notes:
            made_films.keep(notes, name, folder, made)
    return made


def _write_views(task: FilmToMake) -> Made:
    folder, _, film, number, settings = task
    loaded = film.load()
    image, landmarks, prompt_class = loaded.image, loaded.landmarks, loaded.prompt_class
    rows = []
    for view in range(settings.views):
        rng, flip = None, False
        if view > 0:
            # One generator per view: neither other films nor the number of views change it.
            rng = np.random.default_rng([settings.seed, zlib.crc32(film.name.encode()), view])
            flip = bool(rng.random() < 0.5) and loaded.may_flip
        pixels, moved = make_view(
            image,
            landmarks,
            settings.resolution,
            settings.head_distance,
            rng,
            flip,
            settings.jitter,
            settings.warp,
        )
        name = f"{film.split}-{number:05d}-v{view:02d}"
        file = f"images/{film.split}/{name}.png"
        Image.fromarray(pixels).save(folder / file)
        rows.append(
            {
                "id": name,
                "film": film.name,
                "dog": film.dog,
                "split": film.split,
                "view": view,
                "flipped": int(flip),
                "file": file,
                "width": settings.resolution,
                "height": settings.resolution,
                **_labels(moved, prompt_class),
            }
        )
    degrees, distance = resolution_budget(landmarks), landmarks.head_distance
    return Made(rows, degrees, distance, loaded.mirrored, loaded.searched)


def _labels(landmarks: Landmarks, prompt_class: int) -> dict[str, Any]:
    """Landmark, angle and caption columns; the angles are those of the rounded landmarks."""
    rounded = Landmarks.from_array(np.round(landmarks.to_array(), 4))
    angles = rounded.norberg_angles()
    return {
        **rounded.flat(),
        "patient_left": round(angles.patient_left, 3),
        "patient_right": round(angles.patient_right, 3),
        "prompt_class": prompt_class,
        "caption": caption(angles, prompt_class),
    }
