"""Progress of long work: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

LINE_SECONDS = 10.0
"""Least time between two lines of a log file."""


def progress(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items while showing how many of `total` are done on standard error."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=label, leave=False, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - last >= LINE_SECONDS and done < total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
    print(f"{label}: {total}, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
