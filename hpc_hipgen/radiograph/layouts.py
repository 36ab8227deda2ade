"""The data folder of a run: manifest, images, and one layout per generator of the paper.

    manifest.csv                               one row per view, see `COLUMNS`
    images/<split>/<id>.png                    8-bit grey views
    layouts/imagefolder/<split>/metadata.csv   Stable Diffusion: file_name, text, landmarks
    layouts/classes/class_<c>/<id>.png, .txt   DreamBooth: one folder per prompt class
    layouts/pairs/<id>.png, .txt               DALL-E: image and caption of the same stem
    layouts/shards/<split>-class_<c>-<n>.tar   LLCM: webdataset, png + txt + json
    layouts/shards/<split>.parquet             what is where in the shards, see `shard_index.py`

`classes` and `pairs` hold the training split only: their generators train on all that is there.
Images and texts of a layout are hard links to the first copy where the file system can.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_hipgen.files import overlapped
from hpc_hipgen.progress import progress
from hpc_hipgen.radiograph.captions import PROMPT_CLASSES
from hpc_hipgen.radiograph.geometry import LANDMARK_COLUMNS, Landmarks
from hpc_hipgen.radiograph.landmark_table import SPLITS
from hpc_hipgen.radiograph.pictures import Pictures, Places
from hpc_hipgen.radiograph.shard_index import ANGLE_COLUMNS, index_shards
from hpc_hipgen.tables import csv_text

COLUMNS = (
    *"id film dog split view flipped file width height".split(),
    *LANDMARK_COLUMNS,
    *"patient_left patient_right prompt_class caption".split(),
)
"""Columns of manifest.csv; landmarks in pixels of the view, angles in degrees."""

SHARD_VIEWS = 4096
"""Views of one tar; a class with more goes on in the next one."""

Row = Mapping[str, Any]


@dataclass
class Films:
    """Views, in the order of their ids.

    Attributes:
        ids: n names of views.
        images: (n, h, w) uint8; the readers give `Pictures`, which decode what is indexed.
        landmarks: (n, 2, 5) float64 in view pixels, see `Landmarks.to_array`.
        captions: n captions.
        patient_left: (n,) float64 Norberg angles in degrees.
        patient_right: (n,) float64.
        prompt_class: (n,) int64.
        film: n names of the films that the views were cut from.
    """

    ids: list[str]
    images: np.ndarray | Pictures
    landmarks: np.ndarray
    captions: list[str]
    patient_left: np.ndarray
    patient_right: np.ndarray
    prompt_class: np.ndarray
    film: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> "Films":
        """These views, in this order."""

        def taken(value: Any) -> Any:
            if isinstance(value, Pictures):
                return value.take(indices)
            if isinstance(value, np.ndarray):
                return value[list(indices)]
            return [value[i] for i in indices]

        return Films(**{name: taken(value) for name, value in vars(self).items()})

    def ahead(self, indices: np.ndarray) -> None:
        """Begins to decode the views `indices` (k,) int64 in other threads, where that is due."""
        if isinstance(self.images, Pictures):
            self.images.ahead(indices)

    def fingerprint(self, say_busy: Callable[[], None] = lambda: None) -> bytes:
        """Bytes that are others for other images; `say_busy` is called now and then."""
        if isinstance(self.images, Pictures):
            return self.images.fingerprint(say_busy)
        return self.images.tobytes()


def write_layouts(data_folder: Path, rows: Sequence[Row]) -> None:
    """Write the manifest and the four layouts of the views that lie in `images`."""
    rows = sorted(rows, key=lambda row: row["id"])
    _write_csv(data_folder / "manifest.csv", COLUMNS, rows)
    layouts = data_folder / "layouts"
    for split in SPLITS:
        chosen = [row for row in rows if row["split"] == split]
        if chosen:
            _write_imagefolder(data_folder, layouts / "imagefolder" / split, chosen)
            _write_shards(data_folder, layouts / "shards", split, chosen)
    trained = [row for row in rows if row["split"] == "train"]
    for folder in ("pairs", *{f"classes/class_{row['prompt_class']}" for row in trained}):
        (layouts / folder).mkdir(parents=True)

    def lay_out(row: Row) -> None:
        pair = layouts / "pairs" / row["id"]
        beside = layouts / "classes" / f"class_{row['prompt_class']}" / row["id"]
        _link(data_folder / row["file"], pair.with_suffix(".png"))
        pair.with_suffix(".txt").write_text(row["caption"] + "\n")
        for suffix in (".png", ".txt"):
            _link(pair.with_suffix(suffix), beside.with_suffix(suffix))

    work = overlapped(lay_out, trained)
    for _ in progress(work, len(trained), "laying out training views"):
        pass


def _write_imagefolder(data_folder: Path, folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True)

    def link(row: Row) -> None:
        _link(data_folder / row["file"], folder / f"{row['id']}.png")

    for _ in overlapped(link, rows):
        pass
    columns = ("file_name", "text", *(c for c in COLUMNS if c not in ("file", "caption")))
    named = [{**row, "file_name": f"{row['id']}.png", "text": row["caption"]} for row in rows]
    _write_csv(folder / "metadata.csv", columns, named)


def _write_shards(data_folder: Path, folder: Path, split: str, rows: Sequence[Row]) -> None:
    from webdataset import TarWriter

    folder.mkdir(parents=True, exist_ok=True)
    for prompt_class in PROMPT_CLASSES:
        chosen = [row for row in rows if row["prompt_class"] == prompt_class]
        for number, start in enumerate(range(0, len(chosen), SHARD_VIEWS)):
            name = f"{split}-class_{prompt_class}-{number:06d}.tar"
            # Fixed times and owners: the same data give the same bytes.
            with TarWriter(str(folder / name), mtime=0, user="hpc", group="hpc") as tar:
                part = chosen[start : start + SHARD_VIEWS]
                pictures = overlapped(Path.read_bytes, (data_folder / r["file"] for r in part))
                for row, png in zip(part, pictures, strict=True):
                    rest = {k: v for k, v in row.items() if k not in ("file", "caption")}
                    tar.write(
                        {
                            "__key__": row["id"],
                            "png": png,
                            "txt": row["caption"],
                            "json": json.dumps(rest).encode(),
                        }
                    )
    index_shards(folder, split)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """What else rows have is left out."""
    lines = ({name: row.get(name) for name in columns} for row in rows)
    path.write_text(csv_text(lines, columns), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another device, or a file system without hard links
        shutil.copyfile(source, target)


def read_manifest(data_folder: Path, split: str, nominal_only: bool = False) -> Films:
    """Load the views of one split; `nominal_only` leaves the jittered views out.

    Raises:
        ValueError: no manifest, or no view of that split.
    """
    path = data_folder / "manifest.csv"
    rows = [
        row
        for row in _read_csv(path)
        if row["split"] == split and not (nominal_only and int(row["view"]))
    ]
    if not rows:
        raise ValueError(f"{path}: no view in split {split}")
    return _films((row, row["caption"], data_folder / row["file"]) for row in rows)


def read_view(data_folder: Path, split: str, view: int, films: Sequence[str]) -> Films | None:
    """Load one view of each of these films that has it; None when none has."""
    wanted = set(films)
    rows = [
        row
        for row in _read_csv(data_folder / "manifest.csv")
        if row["split"] == split and int(row["view"]) == view and row["film"] in wanted
    ]
    return _films((r, r["caption"], data_folder / r["file"]) for r in rows) if rows else None


def read_imagefolder(folder: Path) -> Films:
    """Load one split of the imagefolder layout.

    Raises:
        ValueError: no metadata.csv, or no view in it.
    """
    path = folder / "metadata.csv"
    rows = list(_read_csv(path))
    if not rows:
        raise ValueError(f"{path}: no view")
    return _films((row, row["text"], folder / row["file_name"]) for row in rows)


def read_pairs(data_folder: Path) -> Films:
    """Load the pairs layout: images and captions from it, landmarks from the manifest.

    Raises:
        ValueError: no pair, or an image that has no text or no row in the manifest.
    """
    return _films(_captioned(data_folder, "pairs", "*.png"))


def read_classes(data_folder: Path) -> Films:
    """Load the class folders of a data folder: the training split.

    Captions and classes are what the folders say; landmarks and films come from the manifest.

    Raises:
        ValueError: no class folder, or an image that has no text or no row in the manifest.
    """
    return _films(
        (row | {"prompt_class": path.parent.name.removeprefix("class_")}, caption, path)
        for row, caption, path in _captioned(data_folder, "classes", "class_*/*.png")
    )


def _captioned(
    data_folder: Path, layout: str, pattern: str
) -> list[tuple[dict[str, str], str, Path]]:
    """Rows of the manifest, captions and images of a layout of pictures with texts beside them."""
    folder, manifest = data_folder / "layouts" / layout, data_folder / "manifest.csv"
    known = {row["id"]: row for row in _read_csv(manifest)}
    items = []
    for image in sorted(folder.glob(pattern), key=lambda path: path.stem):
        text = image.with_suffix(".txt")
        if image.stem not in known:
            raise ValueError(f"{image}: has no row in {manifest}")
        if not text.is_file():
            raise ValueError(f"{text}: no such file; every image of this folder needs a caption")
        items.append((known[image.stem], text.read_text(encoding="utf-8").strip(), image))
    if not items:
        raise ValueError(f"{folder}: no image {pattern}")
    return items


def read_shards(folder: Path, split: str) -> Films:
    """One split of the webdataset layout, every shard on every rank.

    Only the index is read; it is made first where there is none, or an old one.

    Raises:
        ValueError: no shard of that split, or one that is cut off or damaged; names it.
    """
    index = index_shards(folder, split)
    angles = index.numbers(*ANGLE_COLUMNS)
    return Films(
        ids=index.words("id"),
        images=Pictures(index.places()),
        landmarks=index.numbers(*LANDMARK_COLUMNS).reshape(-1, 2, 5),
        captions=index.words("caption"),
        patient_left=angles[:, 0],
        patient_right=angles[:, 1],
        prompt_class=index.numbers("prompt_class"),
        film=index.words("film"),
    )


def _read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Line by line: of a manifest of a million views, most readers keep one in a hundred."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run the stage prepare first")
    with path.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def _films(items: Iterable[tuple[Row, str, Path]]) -> Films:
    """Stack rows with their caption and PNG file."""
    rows, captions, files = zip(*items, strict=True)
    return Films(
        ids=[row["id"] for row in rows],
        images=Pictures(Places.whole(files)),
        landmarks=np.stack([Landmarks.from_flat(row).to_array() for row in rows]),
        captions=list(captions),
        patient_left=np.array([float(row["patient_left"]) for row in rows]),
        patient_right=np.array([float(row["patient_right"]) for row in rows]),
        prompt_class=np.array([int(row["prompt_class"]) for row in rows]),
        film=[row["film"] for row in rows],
    )
