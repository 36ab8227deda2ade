"""Tables as text."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def printable(path: Path | str) -> str:
    """A path as text for files and terminals: a byte of it that is no UTF-8 becomes \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shortlist(names: Iterable[str]) -> str:
    """The first five names in order, each once, with dots where there are more."""
    every = sorted(set(names))
    return ", ".join(every[:5]) + (", ..." if len(every) > 5 else "")


def csv_text(lines: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A head and the lines, as CSV.

    Raises:
        ValueError: when a line has a key that is no column.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A head and rows of cells, as Markdown; no line end after the last."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def number(value: float | None, digits: int = 2) -> str:
    """A number for a label, with a true minus sign; a dash for None."""
    if value is None:
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # + 0.0: no minus zero
