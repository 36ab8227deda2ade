"""The films of a data set: what they are, who is in which split, and what is wrong with them.

A film is either a phantom, drawn when it is needed, or a file with an entry of a landmark table.
"""

import hashlib
import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hpc_hipgen.config import LANDMARKS
from hpc_hipgen.parallel import run_parallel, usable_cpus
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.captions import MIRROR_CLASSES, caption
from hpc_hipgen.radiograph.deidentify import Searched, mask_film, thumbnail
from hpc_hipgen.radiograph.duplicates import fingerprint
from hpc_hipgen.radiograph.films import (
    DRAWN,
    FLAT,
    FilmErrors,
    SpacedFilm,
    films_below,
    is_flat,
    read_spaced_film,
)
from hpc_hipgen.radiograph.geometry import IMAGE_SIDES, Angles, Landmarks
from hpc_hipgen.radiograph.landmark_table import (
    DEFAULT_CLASS,
    SPLITS,
    Entry,
    Table,
    dog_problems,
    read_landmark_table,
    split_problems,
    table_notes,
)
from hpc_hipgen.radiograph.phantom_anatomy import ANGLE_LIMITS
from hpc_hipgen.tables import printable

# Phantoms of a split are numbered from here, so that the test films stay the same when more
# training films are asked for.
_FIRST_INDEX = {"train": 0, "validation": 10_000_000, "test": 20_000_000}


@dataclass(frozen=True)
class Loaded:
    """A film as it goes into a data set.

    `image` (h, w) uint8, `landmarks` in its pixels, `prompt_class`; `may_flip`, whether its mirror
    image is as true; `searched`, what was burned into the file, or None where nobody looked;
    `mirrored`, whether it lies in its file the other way round.
    """

    image: np.ndarray
    landmarks: Landmarks
    prompt_class: int
    may_flip: bool
    searched: Searched | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class PhantomFilm:
    """A phantom, drawn on demand from (seed, index)."""

    name: str
    split: str
    seed: int
    index: int
    size: int
    angles: Angles | None = None
    pixels: str = ""

    @property
    def dog(self) -> str:
        """Every phantom is a dog of its own."""
        return self.name

    def nominal_angles(self) -> Angles:
        """Those of its landmarks, before it is drawn."""
        from hpc_hipgen.radiograph.phantom import sample_parameters

        return sample_parameters(self.seed, self.index, angles=self.angles)[1].angles

    def load(self) -> Loaded:
        """Draw it; its date is nobody's and stays."""
        from hpc_hipgen.radiograph.phantom import draw_phantom

        phantom = draw_phantom(self.seed, self.index, self.size, angles=self.angles)
        may_flip = phantom.prompt_class in MIRROR_CLASSES
        return Loaded(phantom.image, phantom.landmarks, phantom.prompt_class, may_flip)


@dataclass(frozen=True)
class FilmFile:
    """A film on disk with its entry of the landmark table.

    Attributes:
        landmarks: in pixels of the file.
        masked: text burned into it is masked on reading (deidentify.py).
        keep_markers: but not the L or R of a side, unless the film is mirrored.
        pixels: `fingerprint` of the file's picture.
        aspect: height of a pixel of the file in parts of its width.
    """

    name: str
    dog: str
    split: str
    path: Path
    landmarks: Landmarks
    prompt_class: int
    masked: bool = True
    keep_markers: bool = True
    pixels: str = ""
    aspect: float = 1.0

    def nominal_angles(self) -> Angles:
        """Those of its landmarks in square pixels."""
        return self.landmarks.stretch(self.aspect).norberg_angles()

    def load(self) -> Loaded:
        """Read it, mask what was burned in, and bring it into `SpacedFilm.standard`."""
        film = read_spaced_film(self.path)
        searched = None
        if self.masked:
            # a letter would be read the wrong way round once its film is mirrored
            keep_markers = self.keep_markers and not film.mirrored
            image, findings = mask_film(film, self.landmarks, keep_markers)
            film = replace(film, image=image)
            small = thumbnail(image, findings)
            searched = Searched(self.name, findings, small, self.prompt_class)
        left = searched is None or searched.writing_left
        return Loaded(
            film.standard(),
            film.standard_landmarks(self.landmarks),
            self.prompt_class,
            self.prompt_class in MIRROR_CLASSES and not left,
            searched,
            film.mirrored,
        )


Film = PhantomFilm | FilmFile
"""One film of a data set; small enough to be sent to another process."""


def film_pixels(resolution: int) -> int:
    """Longest side of a phantom: twice that of its views or more, so that cropping shrinks."""
    return max(384, 2 * resolution)


def phantom_films(
    seed: int, counts: Mapping[str, int], resolution: int, even_angles: float = 0.0
) -> list[PhantomFilm]:
    """The phantoms of a data set; `counts` per split.

    A share `even_angles` of the training phantoms has angles spread evenly over the range, all
    other phantoms have the population's.
    """
    size = film_pixels(resolution)
    films = []
    for split in SPLITS:
        for n in range(counts.get(split, 0)):
            rng = np.random.default_rng([seed, n, zlib.crc32(b"even angles")])
            even = split == "train" and rng.random() < even_angles
            angles = spread_angles(rng) if even else None
            name, index = f"phantom-{split}-{n:05d}", _FIRST_INDEX[split] + n
            films.append(PhantomFilm(name, split, seed, index, size, angles))
    return films


_SIDE_SPREAD = 8.0
"""Standard deviation in degrees by which the sides of a dog with even angles differ."""


def spread_angles(rng: np.random.Generator) -> Angles:
    """Angles of one dog: one side even over `ANGLE_LIMITS`, the other near it."""
    low, high = ANGLE_LIMITS
    first = rng.uniform(low, high)
    second = np.clip(first + rng.normal(0.0, _SIDE_SPREAD), low, high)
    return Angles(*(float(value) for value in rng.permutation([first, second])))


def split_dogs(dogs: Sequence[str], proportions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Deal dogs to splits in the given proportions; the order of `dogs` does not matter.

    Largest remainders are rounded up, and where there are dogs enough no split that has a
    proportion stays empty.
    """
    ranked = sorted(set(dogs), key=lambda dog: hashlib.sha256(f"{seed}:{dog}".encode()).digest())
    wanted = {split: proportions.get(split, 0) for split in SPLITS if proportions.get(split, 0) > 0}
    shares = {s: len(ranked) * part / sum(wanted.values()) for s, part in wanted.items()}
    counts = {split: math.floor(share) for split, share in shares.items()}
    by_remainder = sorted(shares, key=lambda s: counts[s] - shares[s])
    for split in by_remainder[: len(ranked) - sum(counts.values())]:
        counts[split] += 1
    for split in counts:
        largest = max(counts, key=lambda s: counts[s])
        if counts[split] == 0 and counts[largest] > 1:
            counts[split] += 1
            counts[largest] -= 1
    dealt = [split for split, count in counts.items() for _ in range(count)]
    return dict(zip(ranked, dealt, strict=True))


def film_files(
    folder: Path,
    table: Path | None,
    proportions: Mapping[str, float],
    seed: int,
    masked: bool = True,
    keep_markers: bool = True,
    captioned: bool = True,
) -> list[FilmFile]:
    """Validate a folder of films with its landmark table (default: landmarks.csv in it).

    Every film is read to its last byte. Splits come from the table, or from `split_dogs`. `masked`
    and `keep_markers` are those of `FilmFile`; `captioned`: films of a data set, with captions that
    can name their angles. The table's splits are of account where there are several `proportions`.
    Where films are learnt from, `table_notes` are said on the console.

    Raises:
        FilmErrors: all that is wrong, one line a problem with its file and row.
    """
    table = table or folder / LANDMARKS
    read = read_landmark_table(table, folder)
    entries = read.entries
    problems, pixels, aspects = _film_problems(folder, read, captioned)
    several = len(proportions) > 1
    dealt_badly = [*(split_problems(entries) if several else []), *dog_problems(entries)]
    problems = read.problems + dealt_badly + problems + _twins(entries, pixels)
    if problems:
        raise FilmErrors(problems)
    if "train" in proportions and (notes := table_notes(read)):
        print(f"note: {printable(table)}: {'; '.join(notes)}", file=sys.stderr, flush=True)
    dealt = split_dogs([entry.dog for entry in entries], proportions, seed)
    return [
        FilmFile(
            name=entry.film,
            dog=entry.dog,
            split=entry.split or dealt[entry.dog],
            path=folder / entry.film,
            landmarks=entry.landmarks,
            prompt_class=entry.prompt_class,
            masked=masked,
            keep_markers=keep_markers,
            pixels=pixels[entry.film],
            aspect=aspects[entry.film],
        )
        for entry in sorted(entries, key=lambda entry: entry.film)
    ]


def unlisted_films(folder: Path, films: Sequence[Film]) -> list[str]:
    """Names of the film files of a folder that its landmark table does not mention."""
    known = {film.path.resolve() for film in films if isinstance(film, FilmFile)}
    return sorted(
        path.relative_to(folder).as_posix()
        for path in films_below(folder)
        if path.resolve() not in known
    )


def _film_problems(
    folder: Path, table: Table, captioned: bool
) -> tuple[list[str], dict[str, str], dict[str, float]]:
    """What is wrong with the files of a table, and with its landmarks in these images.

    Also the fingerprint of every film, and the aspect of its pixels.
    """
    entries = {entry.film: entry for entry in table.entries}
    given = [(film, where, entries.get(film)) for film, where in table.films.items()]
    # a login node may have a hundred cores, and other users
    checked = run_parallel(partial(_film_problem, folder, captioned), given, min(8, usable_cpus()))
    problems, pixels, aspects = [], {}, {}
    for film, found, read in progress(checked, len(given), "checking films"):
        problems += found
        if read is not None:
            pixels[film], aspects[film] = read
    return problems, pixels, aspects


def _film_problem(
    folder: Path, captioned: bool, given: tuple[str, str, Entry | None]
) -> tuple[str, list[str], tuple[str, float] | None]:
    """A film's name, what is wrong with it, and its fingerprint and aspect where it can be read.

    `given`: its name, where the table names it, and what that says of it.
    """
    film, where, entry = given
    try:
        read = read_spaced_film(folder / film)
    except ValueError as error:
        return film, [f"{where}: {error}"], None
    problems = [f"{where}: {film}: {FLAT}"] if is_flat(read.image) else []
    if read.synthetic:
        problems.append(f"{where}: {film}: {DRAWN}; leave it out of the table")
    if entry:
        problems += _image_problems(entry, read)
        problems += _caption_problems(entry, read) if captioned else []
    return film, problems, (fingerprint(read.image), read.aspect)


def _twins(entries: Sequence[Entry], pixels: Mapping[str, str]) -> list[str]:
    """One picture under two names: of two dogs it could train a model and measure it."""
    problems: list[str] = []
    first: dict[str, Entry] = {}
    for entry in (entry for entry in entries if entry.film in pixels):
        twin = first.setdefault(pixels[entry.film], entry)
        if twin.dog != entry.dog:
            problems.append(
                f"{entry.where}: {entry.film} is the same picture as {twin.film}, but not of the "
                "same dog; remove one, or name its dog in the column dog"
            )
        elif twin.landmarks != entry.landmarks:
            problems.append(
                f"{entry.where}: {entry.film} is the same picture as {twin.film}, with other "
                "landmarks; remove one"
            )
    return problems


def _image_problems(entry: Entry, film: SpacedFilm) -> list[str]:
    """Landmarks of a film of another size, or outside their film."""
    problems = []
    height, width = film.image.shape
    if entry.size and entry.size != (width, height):
        stated = f"{entry.size[0]:g} x {entry.size[1]:g}"
        return [
            f"{entry.where}: {entry.film}: the landmarks are for {stated} pixels, the film has "
            f"{width} x {height}"
        ]
    for side, where in zip(IMAGE_SIDES, entry.sides_where, strict=True):
        hip = getattr(entry.landmarks, side)
        for point in ("head", "rim"):
            x, y = getattr(hip, f"{point}_x"), getattr(hip, f"{point}_y")
            if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
                problems.append(
                    f"{where}: {entry.film} {side} {point} ({x:g}, {y:g}) is outside the image"
                    f" of {width} x {height} pixels"
                )
    return problems


def _caption_problems(entry: Entry, film: SpacedFilm) -> list[str]:
    """A class that the film has not once it is mirrored, and angles that no caption can name."""
    if film.mirrored and entry.prompt_class not in MIRROR_CLASSES:
        return [
            f"{entry.where}: {entry.film} is mirrored, as its PatientOrientation asks for, and "
            f"prompt_class {entry.prompt_class} names a side of the image; give it {DEFAULT_CLASS}"
        ]
    try:
        caption(film.standard_landmarks(entry.landmarks).norberg_angles(), entry.prompt_class)
    except ValueError as error:
        return [f"{entry.where}: {entry.film}: {error}; leave the film out of the table"]
    return []
