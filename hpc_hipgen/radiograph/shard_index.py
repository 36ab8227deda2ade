"""The table of contents of webdataset shards, so that a view can be read without the others.

<split>.parquet beside the shards has a line for each view, sorted by id: what `Films` says of it,
and in which shard its PNG image lies, from which byte on, how long, with its CRC-32. It is made in
one pass over the shards, by `prepare` or by the first reader that finds none or an old one.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hpc_hipgen.files import write_atomic
from hpc_hipgen.radiograph.geometry import LANDMARK_COLUMNS
from hpc_hipgen.radiograph.pictures import BACKUP, Places

if TYPE_CHECKING:
    import pyarrow

ANGLE_COLUMNS = ("patient_left", "patient_right")
WORDS = ("id", "film", "caption", "shard")
_SIZES = b"shards"


class ShardIndex:
    """What is known of all views of a split."""

    def __init__(self, folder: Path, table: pyarrow.Table) -> None:
        """`table`: of the shards in `folder`, as `index_shards` makes it."""
        self.folder = folder
        self.table = table

    def words(self, name: str) -> list[str]:
        """A column of `WORDS`, n strings; equal ones are one object."""
        column = self.table[name].combine_chunks().dictionary_encode()
        distinct = column.dictionary.to_pylist()
        return [distinct[i] for i in column.indices.to_numpy()]

    def numbers(self, *names: str) -> np.ndarray:
        """A column of numbers, (n,), or several, (n, k)."""
        columns = [self.table[name].to_numpy() for name in names]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

    def places(self) -> Places:
        """Where the images lie."""
        column = self.table["shard"].combine_chunks().dictionary_encode()
        files = [self.folder / name for name in column.dictionary.to_pylist()]
        where = (self.numbers(name) for name in ("offset", "size", "crc32"))
        return Places(files, column.indices.to_numpy(), *where)


def index_shards(folder: Path, split: str) -> ShardIndex:
    """The index of the shards <split>-class_*.tar, made anew unless it is there and current.

    It is current when it names the shards with the sizes that they have, and none of them was
    written after it.

    Raises:
        ValueError: no shard of that split, or one that is cut off or damaged; names it.
    """
    from pyarrow import ArrowInvalid, BufferOutputStream, parquet

    paths = sorted(folder.glob(f"{split}-class_*.tar"))
    if not paths:
        raise ValueError(f"{folder}: no shard {split}-class_*.tar")
    path = folder / f"{split}.parquet"
    if _is_current(path, paths):
        with suppress(ArrowInvalid, OSError):  # of a damaged one, which is made anew
            return ShardIndex(folder, parquet.read_table(path, page_checksum_verification=True))
    sizes = _sizes(paths)
    table = _table([line for shard in paths for line in _contents(shard)])
    table = table.replace_schema_metadata({_SIZES: sizes})
    stream = BufferOutputStream()
    parquet.write_table(table, stream, write_page_checksum=True)
    with suppress(PermissionError):  # of another user's data: the next reader looks again
        write_atomic(path, stream.getvalue().to_pybytes())
    return ShardIndex(folder, table)


def _is_current(index: Path, paths: Sequence[Path]) -> bool:
    from pyarrow import ArrowInvalid, parquet

    if not index.is_file():
        return False
    try:
        stored = (parquet.read_schema(index).metadata or {}).get(_SIZES)
    except (ArrowInvalid, OSError):  # damaged
        return False
    written = index.stat().st_mtime_ns
    return stored == _sizes(paths) and all(p.stat().st_mtime_ns <= written for p in paths)


def _sizes(paths: Sequence[Path]) -> bytes:
    return json.dumps({path.name: path.stat().st_size for path in paths}).encode()


def _table(lines: Sequence[dict[str, Any]]) -> pyarrow.Table:
    import pyarrow

    types = dict.fromkeys(WORDS, pyarrow.string())
    types |= dict.fromkeys((*LANDMARK_COLUMNS, *ANGLE_COLUMNS), pyarrow.float64())
    types |= dict.fromkeys(("prompt_class", "offset", "size"), pyarrow.int64())
    schema = pyarrow.schema(types | {"crc32": pyarrow.uint32()})
    return pyarrow.Table.from_pylist(sorted(lines, key=lambda line: line["id"]), schema)


def _contents(path: Path) -> list[dict[str, Any]]:
    """A line for each view of a shard. Raises ValueError when it is damaged."""
    try:
        check_whole(path)
        with path.open("rb") as file:
            return [_line(file, path.name, members) for _, members in samples_of(path)]
    except (tarfile.TarError, OSError, SyntaxError, KeyError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: unreadable shard ({said}); {BACKUP}") from None


def samples_of(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by suffix of each sample of a webdataset shard.

    The key is a name up to its first dot; members of a sample follow each other.
    """
    with tarfile.open(path, "r:") as tar:
        files = (member for member in tar if member.isfile())
        for key, members in groupby(files, lambda member: member.name.partition(".")[0]):
            yield key, {member.name.partition(".")[2]: member for member in members}


def content(file: io.BufferedReader, member: tarfile.TarInfo) -> bytes:
    """What a member of a tar file, opened as `file`, holds."""
    file.seek(member.offset_data)
    return file.read(member.size)


def _line(file: io.BufferedReader, shard: str, members: dict[str, tarfile.TarInfo]) -> dict:
    image = content(file, members["png"])
    with Image.open(io.BytesIO(image)) as picture:
        picture.verify()  # against the checksums of its own
    row = json.loads(content(file, members["json"]))
    numbers = {name: float(row[name]) for name in (*LANDMARK_COLUMNS, *ANGLE_COLUMNS)}
    return {
        **{"id": row["id"], "film": row["film"], "caption": content(file, members["txt"]).decode()},
        **numbers,
        "prompt_class": int(row["prompt_class"]),
        **{"shard": shard, "offset": members["png"].offset_data},
        **{"size": len(image), "crc32": zlib.crc32(image)},
    }


def check_whole(path: Path) -> None:
    """Sees that a tar file ends as one does: two blocks of zeros.

    One that was cut off between two members reads like a shorter one.

    Raises:
        tarfile.ReadError: when it does not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1024))
        if size % 512 or file.read() != bytes(1024):
            raise tarfile.ReadError("the file is cut off")
