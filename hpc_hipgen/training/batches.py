"""Where the batches of a training run come from: this process, or others ahead of time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpc_hipgen.config import Training
from hpc_hipgen.training.clock import ImageRandom, data_order
from hpc_hipgen.training.engine import micro_batch, rank, world_size
from hpc_hipgen.training.task import Task

Batch = dict[str, Tensor]


class Batches:
    """Makes each batch of this rank when asked for it; the next one's data are read meanwhile."""

    def __init__(self, task: Task, training: Training, seed: int) -> None:
        """For a training of `task`."""
        self.task, self.seed, self.size = task, seed, micro_batch(training)

    def at(self, first: int, following: int) -> Batch:
        """The batch whose first image has clock index `first`; then comes that of `following`."""
        batch = self.make(first)
        self.task.ahead(self.items(following))  # while the network works on this batch
        return batch

    def make(self, first: int) -> Batch:
        """The batch at a clock index: a pure function of it."""
        clock = np.arange(first, first + self.size)
        return self.task.batch(self.items(first), ImageRandom(self.seed, clock))

    def items(self, first: int) -> np.ndarray:
        """The data items (size,) of the batch at `first`."""
        return data_order(self.seed, first, self.size, self.task.size)

    def close(self) -> None:
        """Ends what makes batches ahead of time."""


class BatchesAhead(Batches):
    """Has `training.workers` processes make the batches, in the clock's order.

    The processes are forks of this one: the task is not copied, and its `batch` may not use a GPU.
    """

    def __init__(self, task: Task, training: Training, seed: int, start: int, end: int) -> None:
        """For a training of `task` from clock time `start` to `end`."""
        super().__init__(task, training, seed)
        self.times = clock_times(training, start, end)
        context = multiprocessing.get_context("fork")
        self.ending = context.RawValue("b", False)
        loader = DataLoader(
            _ByClock(self),
            batch_size=None,
            sampler=list(clock_times(training, start, end)),
            num_workers=training.workers,
            multiprocessing_context=context,
            prefetch_factor=4,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_outlive_sigterm, self.ending, os.getpid()),
        )
        self.made: Iterator[Batch] | None = iter(loader)

    def at(self, first: int, following: int) -> Batch:
        """As of `Batches`, but batches can only be asked for in their order."""
        assert self.made is not None and next(self.times) == first
        made = next(self.made)
        if isinstance(made, ValueError):
            raise made
        return made

    def close(self) -> None:
        """Ends the processes."""
        self.ending.value = True
        self.made = None


def _outlive_sigterm(ending: Any, parent: int, worker: int) -> None:
    """Has a worker end by SIGTERM only when the trainer does.

    Slurm sends it to all processes of a job. The trainer saves; a worker that died of it would end
    the trainer.
    """

    def end(number: int, frame: object) -> None:
        if ending.value or os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGTERM, end)


class _ByClock(Dataset):
    """Batches by their clock index, for workers.

    What is wrong with an image is returned: the loader would make a traceback of it.
    """

    def __init__(self, source: Batches) -> None:
        self.make = source.make

    def __getitem__(self, first: int) -> Batch | ValueError:
        try:
            return self.make(first)
        except ValueError as error:
            return error


def clock_times(training: Training, start: int, end: int) -> Iterator[int]:
    """Clock index of the first image of each of this rank's micro-batches from `start` to `end`."""
    share, size = training.batch // world_size(), micro_batch(training)
    for images in range(start, end, training.batch):
        first = images + rank() * share
        yield from range(first, first + share, size)


def batches(task: Task, training: Training, seed: int, start: int, end: int) -> Batches:
    """The batches of a training from clock time `start` to `end`, made as the settings ask for."""
    if training.workers and start < end:
        return BatchesAhead(task, training, seed, start, end)
    return Batches(task, training, seed)
