"""Files of a JSON object a line, of which a crash or a full disk can cut one short.

A line counts where it is a whole object; a part of one never is. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_TAIL = 65_536
"""Bytes at the end of a file among which its last whole line is looked for."""


def read_lines(path: Path, number: str | None = None) -> list[dict[str, Any]]:
    """All whole lines, in the file's order; none without the file.

    `number`: only lines that have a number of this name count.
    """
    return list(_whole(path.read_bytes().split(b"\n"), number)) if path.is_file() else []


def last_line(path: Path, number: str | None = None) -> dict[str, Any]:
    """The last of `read_lines`; empty where there is none. Reads only the end of the file."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return next(_whole(reversed(file.read().split(b"\n")), number), {})


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a line; one before it that was cut short stays by itself."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        torn = file.read(1) not in (b"", b"\n")
        file.write(("\n" * torn + json.dumps(line) + "\n").encode())


def _whole(lines: Iterable[bytes], number: str | None) -> Iterator[dict[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:  # bytes that are no text, too
            continue
        if isinstance(line, dict) and (not number or isinstance(line.get(number), int | float)):
            yield line
