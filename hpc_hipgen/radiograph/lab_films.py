"""A lab's own films as a film ruler learns from them: folds by dog, and scenes cut from the films.

Every film is measured once by a network that saw no film of its dog: dogs, not films, are dealt to
folds. Each film gives `VIEWS` scenes of the same form as the drawn ones (`scene_store.py`), so that
both are varied and learnt in the same way.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hpc_hipgen.files import write_atomic
from hpc_hipgen.parallel import run_parallel
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.dataset import list_mirrored
from hpc_hipgen.radiograph.deidentify import Masking, Searched
from hpc_hipgen.radiograph.film_set import FilmFile
from hpc_hipgen.radiograph.geometry import Landmarks
from hpc_hipgen.radiograph.scene_store import CLOSE_UP_SIZE, FILM_SIZE, stack_scenes, write_scenes
from hpc_hipgen.radiograph.scenes import Scene, close_up_matrices
from hpc_hipgen.radiograph.views import resample

VIEWS = 4
"""Scenes of a film: as it is, mirrored, and either turned and zoomed."""

TURN_DEGREES, TURN_ZOOM = 15.0, 0.15
"""Largest rotation and log zoom of the turned views, before the variation of training."""

_TABLE = "films.json"


@dataclass(frozen=True)
class LabFilm:
    """A prepared film: its file below the lab's folder, its dog, its fold and its landmarks.

    `landmarks`: `Landmarks.flat`, in pixels of `SpacedFilm.standard`.
    """

    name: str
    dog: str
    fold: int
    landmarks: dict[str, float]


def dog_folds(dogs: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """Deal dogs to `folds` groups of about as many films each; the order of films does not matter.

    Args:
        dogs: the dog of each film.
        folds: how many groups.
        seed: of the deal.

    Raises:
        ValueError: when there are fewer dogs than folds.
    """
    films = Counter(dogs)
    if len(films) < folds:
        raise ValueError(
            f"lab_ruler.folds: {folds} folds need at least {folds} dogs, the films are of "
            f"{len(films)}; set lab_ruler.folds lower, or add films of other dogs"
        )
    ranked = sorted(
        films, key=lambda dog: (-films[dog], hashlib.sha256(f"{seed}:{dog}".encode()).digest())
    )
    load = [0] * folds
    dealt = {}
    for dog in ranked:
        dealt[dog] = load.index(min(load))
        load[dealt[dog]] += films[dog]
    return dealt


def write_lab_films(
    folder: Path, films: Sequence[FilmFile], folds: dict[str, int], seed: int
) -> list[str]:
    """Stores the scenes of films, `VIEWS` each and in their order, and the table of the films.

    Of films that are masked, also the report (`deidentified.csv` and, as a picture, `.png`), and a
    list of those that are mirrored.
    Returns what was mirrored and masked, in words.
    """
    done, masking = [], Masking()
    working = run_parallel(partial(_make, seed), films)
    for cut in progress(working, len(films), "preparing films"):
        masking.add(cut.searched)
        done.append(replace(cut, searched=None))
    write_scenes(folder, stack_scenes([pair for film in done for pair in film.scenes]))
    table = [
        asdict(LabFilm(film.name, film.dog, folds[film.dog], cut.landmarks.flat()))
        for film, cut in zip(films, done, strict=True)
    ]
    write_atomic(folder / _TABLE, json.dumps(table, indent=1))
    mirrored = [film.name for film, cut in zip(films, done, strict=True) if cut.mirrored]
    return [*list_mirrored(folder, mirrored), *masking.write(folder)]


def prepared_films(folder: Path) -> list[LabFilm]:
    """The table that `write_lab_films` stored."""
    return [LabFilm(**film) for film in json.loads((folder / _TABLE).read_text())]


def scenes_of(films: Sequence[LabFilm], chosen: Sequence[LabFilm]) -> np.ndarray:
    """Numbers of the scenes of the `chosen` among all prepared `films`."""
    names = {film.name for film in chosen}
    places = [i for i, film in enumerate(films) if film.name in names]
    return np.array([place * VIEWS + view for place in places for view in range(VIEWS)], np.int64)


@dataclass(frozen=True)
class _Cut:
    """What becomes of a film: landmarks as in `LabFilm`, its scenes, and what was done to it."""

    landmarks: Landmarks
    scenes: list[tuple[Scene, Scene]]
    searched: Searched | None
    mirrored: bool


def _make(seed: int, film: FilmFile) -> _Cut:
    """Reads a film, masked where that is asked for, and cuts its scenes."""
    loaded = film.load()
    # a lab's films have no captions
    searched = loaded.searched and replace(loaded.searched, prompt_class=None)
    rng = np.random.default_rng([seed, zlib.crc32(film.name.encode())])
    scenes = film_scenes(loaded.image, loaded.landmarks, rng)
    return _Cut(loaded.landmarks, scenes, searched, loaded.mirrored)


def film_scenes(
    image: np.ndarray, landmarks: Landmarks, rng: np.random.Generator
) -> list[tuple[Scene, Scene]]:
    """`VIEWS` pairs of a shrunk film and the close-up of its image-left hip.

    Args:
        image: film (h, w) uint8 with square pixels.
        landmarks: in its pixels.
        rng: draws rotation and zoom of the turned views.
    """
    pairs = []
    mirrored = image[:, ::-1], landmarks.flip(image.shape[1])
    for view in range(VIEWS):
        film, marks = mirrored if view % 2 else (image, landmarks)
        turn = rng.uniform(-1, 1, 2) * (TURN_DEGREES, TURN_ZOOM) if view >= 2 else np.zeros(2)
        pairs.append((_shrunk(film, marks, *turn), _close_up(film, marks)))
    return pairs


def _shrunk(film: np.ndarray, landmarks: Landmarks, degrees: float, log_zoom: float) -> Scene:
    """A film at the top left of a black square, turned and zoomed about its middle."""
    height, width = film.shape
    scale = FILM_SIZE / max(film.shape)
    angle, zoom = np.radians(degrees), scale * np.exp(log_zoom)
    linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([width - 1, height - 1]) / 2
    matrix = np.column_stack([linear, (middle + 0.5) * scale - 0.5 - linear @ middle])
    points = landmarks.transform(matrix).to_array()[:, [[0, 1], [3, 4]]]
    inside = np.all((points >= 0) & (points <= FILM_SIZE - 1), axis=(1, 2))
    return Scene(resample(film, matrix, FILM_SIZE), points[:, 0], inside)


def _close_up(film: np.ndarray, landmarks: Landmarks) -> Scene:
    """The hip at the image's left, as `draw_close_up` shows it."""
    heads = landmarks.to_array()[:, :2]
    matrix = close_up_matrices(heads[None], CLOSE_UP_SIZE)[0, 0]
    hip = landmarks.transform(matrix).image_left
    points = np.array([[hip.head_x, hip.head_y], [hip.rim_x, hip.rim_y]])
    image = resample(film, matrix, CLOSE_UP_SIZE)
    return Scene(image, points, np.ones(1, bool), hip.head_radius)
