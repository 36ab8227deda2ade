"""Measures files of whole films with a film ruler: finds them, reads them, draws their overlays."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_hipgen import ROOT
from hpc_hipgen.tables import printable

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.films import SpacedFilm
    from hpc_hipgen.rulers.film_ruler import FilmMeasurement, FilmRuler

OVERLAYS = "overlays"
"""Folder of the pictures in --out."""

RESULTS = "measurements.json"
"""What is written beside them at the end."""

TABLE = "measurements.csv"
"""What is written beside them on the way, and at the end."""

KEPT_EVERY = 500
"""Films after which what was measured is written."""

_LONGEST_NAME = 200  # bytes of a picture's name that are the film's; a name ends at 255

SHIPPED_RULER = ROOT / "results" / "reference" / "film_ruler"
"""The ruler that comes with the program."""


def find_films(given: Sequence[str], out: Path) -> list[Path]:
    """Files that arguments name, each once: files, folders with all below, globs.

    Of a folder: what has the suffix of a film or is DICOM without one, but not the overlays that
    earlier calls may have drawn there, or in `out`.

    Raises:
        ValueError: naming the argument that names nothing.
    """
    from hpc_hipgen.radiograph.films import FILM_SUFFIXES, films_below

    found: dict[Path, Path] = {}
    drawn = (out / OVERLAYS).resolve()
    for name in given:
        path = Path(name)
        if not name:
            raise ValueError("an argument is empty; name a file, a folder or a pattern")
        if path.is_dir():
            paths = [
                p
                for p in films_below(path)
                if not (p.resolve().is_relative_to(drawn) or _is_overlay(p))
            ]
            if not paths:
                raise ValueError(f"{name}: no films in this folder ({', '.join(FILM_SUFFIXES)})")
        elif path.exists():
            paths = [path]
        else:
            paths = [Path(p) for p in sorted(glob.glob(name, recursive=True)) if Path(p).is_file()]
            if not paths:
                raise ValueError(f"{name}: no such file, folder or match")
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _is_overlay(path: Path) -> bool:
    """Whether a file is the picture of an earlier call, whose results lie above it."""
    return path.parent.name == OVERLAYS and (path.parents[1] / RESULTS).is_file()


def measure_files(
    files: Sequence[Path],
    ruler: FilmRuler,
    out: Path,
    batch: int,
    overlays: bool,
    lines: list[dict[str, Any]],
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Adds a line for each file to `lines`, in their order; pictures go to out/overlays.

    `keep` is called after every `KEPT_EVERY` lines, so that a process that is killed loses few.
    Reading and drawing share a few threads, while this one measures batch after batch.
    """
    from hpc_hipgen.parallel import usable_cpus
    from hpc_hipgen.progress import progress

    names = _overlay_names(files)
    pool = ThreadPoolExecutor(usable_cpus())
    pictures: list[Future[None]] = []
    try:
        done = progress(_measured(files, ruler, batch, pool), len(files), "measuring")
        for path, film, found, line in done:
            lines.append(line)
            if len(lines) % KEPT_EVERY == 0:
                keep()
            if overlays and film is not None and found is not None:
                place = out / OVERLAYS / names[path]
                pictures.append(pool.submit(_draw, place, film, line, found))
                while len(pictures) > 2 * batch:  # each holds its film
                    pictures.pop(0).result()
        for picture in pictures:
            picture.result()
    finally:
        pool.shutdown(cancel_futures=True)


Measured = tuple[Path, "SpacedFilm | None", "FilmMeasurement | None", dict[str, Any]]


def _measured(
    files: Sequence[Path], ruler: FilmRuler, batch: int, pool: ThreadPoolExecutor
) -> Iterator[Measured]:
    """Every file with what was found, read ahead by one batch."""
    from hpc_hipgen.rulers.film_report import film_line, unreadable_line

    groups = [files[start : start + batch] for start in range(0, len(files), batch)]
    ahead = [pool.submit(_read, path) for path in groups[0]]
    for group, following in zip(groups, [*groups[1:], []], strict=True):
        films = [future.result() for future in ahead]
        ahead = [pool.submit(_read, path) for path in following]
        readable = [film for film in films if not isinstance(film, str)]
        found = iter(ruler.measure([film.square() for film in readable]))
        for path, film in zip(group, films, strict=True):
            if isinstance(film, str):
                yield path, None, None, unreadable_line(printable(path), film)
            else:
                measurement = next(found)
                yield path, film, measurement, film_line(printable(path), film, measurement)


def _read(path: Path) -> SpacedFilm | str:
    """The film, or why it cannot be read."""
    from hpc_hipgen.radiograph.films import read_spaced_film

    try:
        film = read_spaced_film(path)
        film.square()  # whatever it raises, it is this file that cannot be read
        return film
    except Exception as error:
        return printable(str(error).removeprefix(f"{path}: ")) or type(error).__name__


def _draw(path: Path, film: SpacedFilm, line: dict[str, Any], found: FilmMeasurement) -> None:
    from hpc_hipgen.files import write_atomic
    from hpc_hipgen.rulers.film_report import overlay

    write_atomic(path, overlay(film.square(), line, found))


def _overlay_names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name for each film's picture, all different."""
    count: Counter[str] = Counter()
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in files:
        name = picture = printable(path.name).encode()[:_LONGEST_NAME].decode(errors="ignore")
        while picture in taken:  # another film may be named like a numbered one
            count[name] += 1
            picture = f"{name}-{count[name] + 1}"
        taken.add(picture)
        names[path] = f"{picture}.png"
    return names
