"""The same work on many items, in a few processes where that is worth it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST = 16
"""Below that many items, starting processes takes longer than the work."""


def run_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """Results in the order of the items; `processes`, by default the CPUs that may be used."""
    processes = min(processes or len(os.sched_getaffinity(0)), len(items))
    if processes < 2 or len(items) < LEAST:
        yield from map(function, items)
        return
    # Not fork: the caller may have threads (torch), whose locks a fork would copy. An executor,
    # because a multiprocessing.Pool waits for ever for a worker that was killed.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=4)
