"""Grey views in PNG files or in shards, decoded when they are asked for."""

from __future__ import annotations

import functools
import io
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hpc_hipgen.files import DamagedError
from hpc_hipgen.parallel import usable_cpus

KEPT_BYTES = 2**30
"""Sets of no more pixels than this stay in memory once they are decoded."""

OPEN_SHARDS = 128
"""Shards that are held open at once, well below the usual limit of 1,024 files."""

_AT_ONCE = 4096  # files that are read between two signs of life

BACKUP = "make the data again in another run (--run NAME), or copy the file from a backup"
"""What to do about a damaged file of the data folder."""


@dataclass(frozen=True)
class Places:
    """Where n PNG images lie.

    Attributes:
        files: the m files that hold them.
        file: (n,) int, each image's index in `files`.
        offset: (n,) int64, its first byte.
        size: (n,) int64, its number of bytes.
        crc32: (n,) uint32 of those bytes; None for images in files of their own.
    """

    files: Sequence[Path]
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    crc32: np.ndarray | None = None

    @classmethod
    def whole(cls, files: Sequence[Path]) -> Places:
        """Images in files of their own. Raises DamagedError for one that is missing."""
        try:
            size = np.array([os.stat(file).st_size for file in files], np.int64)
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename}: missing; {BACKUP}") from None
        return cls(files, np.arange(len(files)), np.zeros_like(size), size)

    def take(self, indices: np.ndarray) -> Places:
        """These images, in this order."""
        crc32 = None if self.crc32 is None else self.crc32[indices]
        return Places(
            self.files, self.file[indices], self.offset[indices], self.size[indices], crc32
        )


class Pictures:
    """n views of one size that read like an (n, h, w) uint8 array.

    Indexing decodes what it is asked for: an integer gives (h, w), a slice, a list, a mask or an
    array of integers gives (k, h, w); further indices are of what was decoded. A set of at most
    `KEPT_BYTES` keeps what it decoded.
    Decoding raises ValueError, naming the file, for an image that is damaged, has another size than
    the first, or is not grey.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, places: Places, size: tuple[int, int] | None = None) -> None:
        """`size`: height and width; None reads those of the first image."""
        self.places = places
        self._crc32s = places.crc32
        self._numbers = np.arange(len(places.file))
        self._opened = functools.lru_cache(OPEN_SHARDS)(lambda path: open(path, "rb", buffering=0))
        self._coming: dict[tuple[int, int], Future[np.ndarray]] = {}  # by process and number
        self.shape = (len(self), *(size or _size(self._bytes(0))))
        self._kept: np.ndarray | None = None
        if np.prod(self.shape) <= KEPT_BYTES:
            self._kept = _shared(self.shape)
            self._known = _shared((len(self),)).view(bool)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, key: Any) -> np.ndarray:
        """The views `key`, decoded."""
        if isinstance(key, tuple):
            first, *rest = key
            views = self[first]
            return views[(slice(None), *rest)] if views.ndim == self.ndim else views[tuple(rest)]
        numbers = self._numbers[key]
        if numbers.ndim == 0:
            return self._view(int(numbers))
        if _workers() > 1:
            self.ahead(numbers)
        found = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for place, number in enumerate(numbers.tolist()):
            found[place] = self._view(number)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All views, decoded."""
        return self[:].astype(dtype or np.uint8, copy=False)

    def take(self, indices: Sequence[int] | np.ndarray) -> Pictures:
        """These views, in this order; nothing is decoded."""
        return Pictures(self.places.take(np.asarray(indices, np.int64)), self.shape[1:])

    def ahead(self, numbers: np.ndarray) -> None:
        """Begins to decode the views `numbers` (k,) int64 in other threads."""
        pid = os.getpid()
        for number in numbers.tolist():
            known = self._kept is not None and self._known[number]
            if not known and (pid, number) not in self._coming:
                self._coming[pid, number] = _pool(pid).submit(self._decode, number)

    def fingerprint(self, say_busy: Callable[[], None] = lambda: None) -> bytes:
        """CRC-32 and size of every PNG image: the same in files and in shards, without decoding.

        Files are read for it, once and several at a time; `say_busy` is called now and then.
        """
        if self._crc32s is None:
            crc32 = np.empty(len(self), np.uint32)
            for start in range(0, len(self), _AT_ONCE):
                part = range(start, min(start + _AT_ONCE, len(self)))
                crc32[part.start : part.stop] = list(_pool(os.getpid()).map(self._crc32, part))
                say_busy()
            self._crc32s = crc32
        return self._crc32s.astype("<u4").tobytes() + self.places.size.astype("<i8").tobytes()

    def _crc32(self, number: int) -> int:
        return zlib.crc32(self._bytes(number))

    def _view(self, number: int) -> np.ndarray:
        if self._kept is not None and self._known[number]:
            return self._kept[number]
        coming = self._coming.pop((os.getpid(), number), None)
        view = coming.result() if coming else self._decode(number)
        if self._kept is not None:
            self._kept[number] = view
            self._known[number] = True
        return view

    def _decode(self, number: int) -> np.ndarray:
        places = self.places
        try:
            data = self._bytes(number)
            if places.crc32 is not None and zlib.crc32(data) != places.crc32[number]:
                raise ValueError("its bytes have changed")
            view = _decoded(data)
            if view.shape != self.shape[1:]:
                raise ValueError(f"of shape {view.shape} among views of {self.shape[1:]}")
        except (OSError, SyntaxError, ValueError) as error:
            path, offset = places.files[places.file[number]], places.offset[number]
            said = " ".join(str(error).split())
            raise ValueError(
                f"{path}: unreadable view at byte {offset} ({said}); {BACKUP}"
            ) from None
        return view

    def _bytes(self, number: int) -> bytes:
        places = self.places
        path, size = places.files[places.file[number]], int(places.size[number])
        if places.crc32 is None:  # such files are not worth keeping open
            return path.read_bytes()
        # a name of its own keeps it open: another thread's call may have closed the one held
        file = self._opened(path)
        return os.pread(file.fileno(), size, int(places.offset[number]))


def _shared(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros uint8, which take memory as they are filled; forks of this process fill the same."""
    size = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, size).reshape(shape)


def _decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return np.asarray(picture)


def _size(data: bytes) -> tuple[int, int]:
    """Height and width, by the head of a PNG file."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        return picture.height, picture.width


def _workers() -> int:
    return min(8, usable_cpus())


@functools.cache
def _pool(pid: int) -> ThreadPoolExecutor:
    """Threads of one process: one that is forked off has none of its parent's."""
    return ThreadPoolExecutor(_workers(), "decoding")
