"""Landmark tables: CSV with one row per hip, or COCO keypoints.

**CSV** (comma separated, UTF-8), one row per hip and two per film:

    image          file of the film, relative to the films' folder
    side           image_left or image_right (image sides, not the patient's)
    head_x, head_y, head_radius   best-fit circle of the femoral head, pixels of the film
    rim_x, rim_y                  craniolateral acetabular rim point
    norberg_angle  optional, degrees: compared with the landmarks (in square pixels), never used
    dog            optional: films of one dog stay in one split (without it: every film its own dog)
    split          optional: train, validation or test
    prompt_class   optional: 1 to 4 (default 4), see captions.py

**COCO** (JSON): one annotation per film whose category names the six keypoints `image_left_head`,
`image_left_head_edge` (any point on the circle, it gives the radius), `image_left_rim` and the
same of `image_right`. An image may carry `dog`, `split` and `prompt_class` beside its `file_name`,
and `width` and `height`, which must be those of the film.

Coordinates: pixel centres at integers, (0, 0) at the top left, y downwards, of the picture as it is
shown (an EXIF orientation is obeyed), the dog's head up. Capital letters in names of columns, and
blanks around them, are no matter. Other columns are not read; `table_notes` names them, for one may
be `dog` under another name.
"""

import csv
import io
import json
import math
import unicodedata
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpc_hipgen.radiograph.captions import PROMPT_CLASSES
from hpc_hipgen.radiograph.films import FILM_SUFFIXES, pixel_aspect
from hpc_hipgen.radiograph.geometry import IMAGE_SIDES, Hip, Landmarks
from hpc_hipgen.tables import shortlist

SPLITS = ("train", "validation", "test")

ANGLE_TOLERANCE = 0.5
"""Degrees by which a stated Norberg angle may differ from the one that the landmarks give."""

DEFAULT_CLASS = 4
"""Prompt class of a film whose table names none: a plain view."""

_NUMBERS = ("head_x", "head_y", "head_radius", "rim_x", "rim_y")
_REQUIRED = ("image", "side", *_NUMBERS)
_FILM_COLUMNS = ("dog", "split", "prompt_class")
_KNOWN = (*_REQUIRED, "norberg_angle", *_FILM_COLUMNS)
_KNOWN_OF_COCO = (
    *("id", "file_name", "width", "height", *_FILM_COLUMNS),
    *("license", "flickr_url", "coco_url", "date_captured"),  # what its standard has beside them
)


@dataclass(frozen=True)
class Entry:
    """One film of a landmark table.

    Attributes:
        film: file name relative to the films' folder.
        landmarks: in pixels of the film.
        dog: whose film it is; where the table does not say, the file without the suffix of a film.
        split: "train", "validation", "test", or None where the table does not say.
        prompt_class: a key of `PROMPT_CLASSES`.
        where: file and row, for messages.
        sides_where: file and row of each side, for messages.
        dog_named: whether the table says whose film it is.
        size: width and height of the film in pixels, where it is COCO and says them.
    """

    film: str
    landmarks: Landmarks
    dog: str
    split: str | None
    prompt_class: int
    where: str
    sides_where: tuple[str, str]
    dog_named: bool = False
    size: tuple[float, float] | None = None


@dataclass
class Table:
    """What a landmark table says, right or wrong.

    Attributes:
        entries: the films whose landmarks could be read, those with a problem included.
        problems: one line each, with file and row; the table is usable when there is none.
        films: every film that is named, and where; so that its file can be checked in any case.
        unread: names of columns, or of what COCO says of an image, that are not read.
    """

    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    films: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def read_landmark_table(path: Path, folder: Path | None = None) -> Table:
    """Read a CSV or COCO (suffix .json) table and check all that needs no image.

    But for what only matters to whoever deals films: `dog_problems` and `split_problems`.

    Args:
        path: of the table.
        folder: of the films, by default the table's; where angles are stated, their headers are
            read.
    """
    if not path.is_file():
        what = "is a folder, no landmark table" if path.is_dir() else "no such landmark table"
        return Table(problems=[f"{path}: {what}"])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return Table(problems=[f"{path}: not a UTF-8 text file"])
    except OSError as error:
        return Table(problems=[f"{path}: cannot be read ({error.strerror})"])
    if path.suffix.lower() == ".json":
        table = _read_coco(path, text)
    else:
        table = _read_csv(path, text, path.parent if folder is None else folder)
    if not table.films and not table.problems:
        table.problems.append(f"{path}: no film in it")
    return table


def _read_csv(path: Path, text: str, folder: Path) -> Table:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        other = set(";\t") & set(text.split("\n", 1)[0])
        hint = "; separate the columns by commas" if other else ""
        return Table(problems=[f"{path} row 1: no column {', '.join(missing)}{hint}"])
    if twice := [name for name in _KNOWN if names.count(name) > 1]:
        return Table(problems=[f"{path} row 1: column {', '.join(twice)} is there twice"])
    problems: list[str] = []
    films: dict[str, dict[str, tuple[str, Hip | None, dict[str, str]]]] = defaultdict(dict)
    for row in _rows(reader, path, problems):
        where = f"{path} row {reader.line_num}"
        film, side = (row["image"] or "").strip(), (row["side"] or "").strip()
        faults = _row_faults(row, film, side)
        if not faults and side in films[film]:
            faults = [f"{film} {side} is there twice, first in {films[film][side][0]}"]
        if film and side in IMAGE_SIDES:
            # A faulty row still counts as this side's, lest it be called missing as well.
            hip = None if faults else Hip(*(float(row[name]) for name in _NUMBERS))
            films[film].setdefault(side, (where, hip, row))
        problems += [f"{where}: {fault}" for fault in faults]
    table = Table(problems=problems, unread=_unread(names, _KNOWN))
    for film, sides in films.items():
        table.films[film] = next(iter(sides.values()))[0]
        entry, faults = _join_sides(folder, film, sides)
        table.problems += faults
        table.entries += [entry] if entry else []
    return table


def _unread(names: Iterable[str], known: Container[str]) -> list[str]:
    """The names, each once, that are none of the known ones."""
    return [name for name in dict.fromkeys(names) if name and name not in known]


def _row_faults(row: Mapping[str, Any], film: str, side: str) -> list[str]:
    """What is wrong with one row by itself."""
    if None in row:
        return ["it has more values than there are columns"]
    faults = [] if film else ["the image is missing"]
    if side not in IMAGE_SIDES:
        faults.append(f"side {side!r} is not {' or '.join(IMAGE_SIDES)}")
    for name in _NUMBERS:
        if _number(row[name]) is None:
            faults.append(f"{name} {row[name] or ''!r} is not a number")
    radius = _number(row["head_radius"])
    if radius is not None and radius <= 0:
        faults.append(f"head_radius {row['head_radius']!r} is not above zero")
    angle = (row.get("norberg_angle") or "").strip()
    if angle and _number(angle) is None:
        faults.append(f"norberg_angle {angle!r} is not a number")
    return faults + _film_faults(row)


def _rows(reader: csv.DictReader, path: Path, problems: list[str]) -> Iterator[dict[str, str]]:
    """The rows up to one that is none, which is added to the problems."""
    try:
        yield from reader
    except csv.Error as error:
        problems.append(f"{path} row {reader.line_num}: {error}; is a quotation mark not closed?")


def _film_faults(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with the optional columns that describe the film."""
    faults = []
    split, prompt_class = (_text(row, name) for name in ("split", "prompt_class"))
    if split and split not in SPLITS:
        faults.append(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if prompt_class and prompt_class not in map(str, PROMPT_CLASSES):
        known = ", ".join(map(str, PROMPT_CLASSES))
        faults.append(f"prompt_class {prompt_class!r} is not one of {known}")
    return faults


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _join_sides(
    folder: Path, film: str, sides: dict[str, tuple[str, Hip | None, dict[str, str]]]
) -> tuple[Entry | None, list[str]]:
    """Make one film of its two rows, or say what keeps them apart."""
    where = next(iter(sides.values()))[0]
    missing = [side for side in IMAGE_SIDES if side not in sides]
    if missing:
        return None, [f"{where}: {film} has no row for {missing[0]}"]
    hips = [hip for side in IMAGE_SIDES if (hip := sides[side][1]) is not None]
    if len(hips) < len(IMAGE_SIDES):
        return None, []  # reported with its row
    rows = [sides[side][2] for side in IMAGE_SIDES]
    landmarks = Landmarks(*hips)
    faults = [
        f"{where}: {film} has two different values of {name}"
        for name in _FILM_COLUMNS
        if (rows[0].get(name) or "").strip() != (rows[1].get(name) or "").strip()
    ]
    faults += [f"{where}: {fault}" for fault in landmark_faults(film, landmarks)]
    if not faults:
        stated = [(sides[side][0], sides[side][2]) for side in IMAGE_SIDES]
        faults = _angle_faults(folder / film, landmarks, stated)
    if any(_film_faults(row) for row in rows):
        return None, faults
    where_sides = (sides[IMAGE_SIDES[0]][0], sides[IMAGE_SIDES[1]][0])
    return _entry(film, landmarks, rows[0], where, where_sides), faults


def _text(row: Mapping[str, Any], name: str) -> str:
    """What a column says; empty where there is nothing. COCO has numbers there, 0 among them."""
    value = row.get(name)
    return "" if value is None else str(value).strip()


def _entry(
    film: str, landmarks: Landmarks, row: Mapping[str, Any], where: str, sides: tuple[str, str]
) -> Entry:
    dog, split, prompt_class = (_text(row, name) for name in _FILM_COLUMNS)
    return Entry(
        film=film,
        landmarks=landmarks,
        dog=dog or _own_dog(film),
        split=split or None,
        prompt_class=int(prompt_class or DEFAULT_CLASS),
        where=where,
        sides_where=sides,
        dog_named=bool(dog),
    )


def _stated_size(image: Mapping[str, Any]) -> tuple[float, float] | None:
    """Width and height in pixels that COCO states of an image; some tools write 0 for unknown."""
    width, height = (_number(image.get(name)) for name in ("width", "height"))
    return (width, height) if width and height else None


def _own_dog(film: str) -> str:
    """The dog of a film whose table names none; part of an identifier can look like a suffix."""
    path = Path(film)
    return (path.with_suffix("") if path.suffix.lower() in FILM_SUFFIXES else path).as_posix()


def landmark_faults(film: str, landmarks: Landmarks) -> list[str]:
    """What is impossible about the landmarks of a film, whatever its size."""
    faults = []
    left, right = landmarks.image_left, landmarks.image_right
    if left.head_x >= right.head_x:
        faults.append(
            f"{film}: the head of image_left (x {left.head_x}) is not to the left of that of"
            f" image_right (x {right.head_x}); sides are the image's, not the patient's"
        )
    for side, hip in zip(IMAGE_SIDES, (left, right), strict=True):
        if (hip.head_x, hip.head_y) == (hip.rim_x, hip.rim_y):
            faults.append(f"{film}: rim point and head centre of {side} are the same point")
        # what is burned in near a hip is left unmasked, and how near goes by the radius
        if hip.head_radius > landmarks.head_distance / 2:
            faults.append(
                f"{film}: head_radius {hip.head_radius:g} of {side} is more than half the "
                f"{landmarks.head_distance:g} pixels between the heads"
            )
    if faults:
        return faults
    upright = "y runs downwards, and films are upright, the dog's head up"
    below = [
        side for side, hip in zip(IMAGE_SIDES, (left, right), strict=True) if _below(hip, landmarks)
    ]
    if len(below) == 2:
        faults.append(f"{film}: both rim points lie below the line between the heads; {upright}")
    elif below and getattr(landmarks.norberg_angles(), below[0]) > 90:
        # a head out of its socket may lie above its rim, but none lies medial of it, too; an angle
        # has no sign, so that this one would be read as that of the mirrored rim
        faults.append(
            f"{film}: the rim point of {below[0]} lies below the line between the heads, on the "
            f"outer side of its own; {upright}"
        )
    return faults


def _below(hip: Hip, landmarks: Landmarks) -> bool:
    """Whether a rim point is caudal of the line through both heads, where no rim can be."""
    left, right = landmarks.image_left, landmarks.image_right
    slope = (right.head_y - left.head_y) / (right.head_x - left.head_x)
    return hip.rim_y > left.head_y + slope * (hip.rim_x - left.head_x)


def _angle_faults(
    path: Path, landmarks: Landmarks, rows: list[tuple[str, dict[str, str]]]
) -> list[str]:
    """Stated angles that are not those of the landmarks; `rows` in the order of IMAGE_SIDES."""
    if not any(row.get("norberg_angle") for _, row in rows):
        return []
    faults = []
    angles = landmarks.stretch(pixel_aspect(path)).norberg_angles()
    for side, (where, row) in zip(IMAGE_SIDES, rows, strict=True):
        stated, computed = _number(row.get("norberg_angle")), getattr(angles, side)
        if stated is not None and abs(stated - computed) > ANGLE_TOLERANCE:
            faults.append(
                f"{where}: norberg_angle of {row['image'].strip()} {side} is {stated:g}"
                f" but the landmarks give {computed:.1f} degrees"
            )
    return faults


def dog_problems(entries: list[Entry]) -> list[str]:
    """A dog for some films only, or in two spellings, as if it were two that are dealt apart."""
    if not any(entry.dog_named for entry in entries):
        return []
    problems = [
        f"{entry.where}: {entry.film} has no dog, other films have; give every film one"
        for entry in entries
        if not entry.dog_named
    ]
    spellings: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in (entry for entry in entries if entry.dog_named):
        spellings[_dog_key(entry.dog)].setdefault(entry.dog, entry)
    for first, *others in (list(of_one.values()) for of_one in spellings.values()):
        # as ASCII: spellings of one letter in Unicode look the same
        problems += [
            f"{other.where}: dog {other.dog!a} is spelled {first.dog!a} in {first.where}; give "
            "films of one dog one spelling, and two dogs names that differ more"
            for other in others
        ]
    return problems


def table_notes(table: Table) -> list[str]:
    """What may be meant otherwise in a table that is right, for whoever deals its films by dog.

    All that is not read is named: films of one dog would be dealt apart by a column `dog_id`.
    """
    notes = []
    if not any(entry.dog_named for entry in table.entries):
        notes.append("no dog is named (column dog), so that every film counts as a dog of its own")
    if table.unread:
        notes.append(f"not read: {', '.join(table.unread)}")
    return notes


def _dog_key(dog: str) -> str:
    """What spellings of one name share: capitals, blanks and forms of Unicode are no matter."""
    return " ".join(unicodedata.normalize("NFKC", dog).split()).casefold()


def split_problems(entries: list[Entry]) -> list[str]:
    """A dog in two splits, or a split for some films only."""
    problems = []
    if any(entry.split for entry in entries):
        problems += [
            f"{entry.where}: {entry.film} has no split, other films have; give every film one, or "
            "leave the column out"
            for entry in entries
            if not entry.split
        ]
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.dog, entry)
        if entry.split and other.split and other.split != entry.split:
            problems.append(
                f"{entry.where}: dog {entry.dog} is in split {entry.split}, but {other.film}"
                f" puts it in {other.split}"
            )
    return problems


def _read_coco(path: Path, text: str) -> Table:
    try:
        tree = json.loads(text)
        listed = [{key.strip().lower(): v for key, v in image.items()} for image in tree["images"]]
        images = {image["id"]: image for image in listed}
        names = {c["id"]: list(map(str, c.get("keypoints", ()))) for c in tree["categories"]}
        annotations = list(map(dict, tree["annotations"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}".strip()
        return Table(
            problems=[f"{path}: not COCO keypoints (images, categories, annotations): {reason}"]
        )
    table = Table(unread=_unread((key for image in listed for key in image), _KNOWN_OF_COCO))
    if len(images) < len(listed):
        ids = [image["id"] for image in listed]
        twice = shortlist([str(found) for found in images if ids.count(found) > 1])
        table.problems.append(f"{path}: several images have the id {twice}")
    for number, annotation in enumerate(annotations, 1):
        where = f"{path} annotation {number}"
        image = _of_id(images, annotation.get("image_id")) or {}
        film = str(image.get("file_name") or "")
        if not film:
            fault = f"image_id {annotation.get('image_id')!r} has no file_name in images"
            table.problems.append(f"{where}: {fault}")
        elif film in table.films:
            table.problems.append(f"{where}: {film} is there twice, first in {table.films[film]}")
        else:
            table.films[film] = where
            keypoint_names = _of_id(names, annotation.get("category_id")) or []
            _add_coco_film(table, where, image, annotation.get("keypoints"), keypoint_names)
    table.problems += [
        f"{path}: image {image.get('file_name')!r} has no annotation"
        for image in images.values()
        if str(image.get("file_name")) not in table.films
    ]
    return table


def _of_id(known: Mapping[Any, Any], name: Any) -> Any:
    """What has an identifier of JSON, which may be anything; None where nothing has it."""
    return known.get(name) if isinstance(name, Hashable) else None


def _add_coco_film(
    table: Table, where: str, image: Mapping[str, Any], keypoints: Any, names: list[str]
) -> None:
    """Add one annotated image, or what is wrong with it, to the table."""
    film = str(image["file_name"])
    landmarks, faults = _coco_landmarks(keypoints, names)
    film_faults = _film_faults(image)
    table.problems += [f"{where}: {film}: {fault}" for fault in faults + film_faults]
    if landmarks is not None:
        table.problems += [f"{where}: {fault}" for fault in landmark_faults(film, landmarks)]
        if not film_faults:
            entry = _entry(film, landmarks, image, where, (where, where))
            table.entries.append(replace(entry, size=_stated_size(image)))


def _coco_landmarks(keypoints: Any, names: list[str]) -> tuple[Landmarks | None, list[str]]:
    """Landmarks of the flat list x, y, visibility, ... in the order of the category's names."""
    if not isinstance(keypoints, list) or len(keypoints) != 3 * len(names):
        return None, [f"keypoints are not {len(names)} triples x, y, visibility"]
    found: dict[str, tuple[float, float]] = {}
    for place, name in enumerate(names):
        x, y, visible = (_number(value) for value in keypoints[3 * place : 3 * place + 3])
        if x is not None and y is not None and visible:  # visibility 0: not labelled
            found[name] = (x, y)
    needed = [f"{side}_{part}" for side in IMAGE_SIDES for part in ("head", "head_edge", "rim")]
    missing = [name for name in needed if name not in found]
    if missing:
        return None, [f"keypoint {', '.join(missing)} is not labelled"]
    hips = []
    for side in IMAGE_SIDES:
        head, edge, rim = (found[f"{side}_{part}"] for part in ("head", "head_edge", "rim"))
        radius = math.dist(head, edge)
        if radius == 0:
            return None, [f"{side}_head and {side}_head_edge are the same point"]
        hips.append(Hip(*head, radius, *rim))
    return Landmarks(*hips), []
