"""The same work on many items, in a few processes where that is worth it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LEAST = 16
"""Below that many items, starting processes takes longer than the work."""

_AT_ONCE = 4  # items that are handed to a process together


CPUS_VARIABLE = "HIPGEN_CPUS"
"""How many CPUs a local process takes that runs beside others."""

NO_GPU = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that show no GPU."""


def usable_cpus() -> int:
    """CPUs that this process may use: in a job no more than it asked for, bound or not."""
    here = len(os.sched_getaffinity(0))
    asked = (os.environ.get(name) for name in ("SLURM_CPUS_PER_TASK", CPUS_VARIABLE))
    return min(here, *(int(number or here) for number in asked))


def run_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """Results in the order of the items; `processes`, by default the CPUs that may be used."""
    processes = min(processes or usable_cpus(), len(items))
    if processes < 2 or len(items) < LEAST:
        yield from map(function, items)
        return
    # Not fork: the caller may have threads (torch), whose locks a fork would copy. An executor,
    # because a multiprocessing.Pool waits for ever for a worker that was killed.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _end_with, (os.getpid(),)) as pool:
        parts = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
        futures = [pool.submit(_results, function, part) for part in parts]
        futures.reverse()
        try:
            while futures:
                yield from futures.pop().result()
        except BaseException:
            # else all parts are waited for; python 3.11 cannot kill after cancelling them
            for worker in list(pool._processes.values()):
                worker.kill()
            raise


def _results(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def _end_with(parent: int) -> None:
    """Ends this worker when its parent was killed: it would wait for work for ever.

    Ctrl-C in a terminal reaches it too, and is the parent's to act on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
