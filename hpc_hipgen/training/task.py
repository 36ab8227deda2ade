"""What the training loop needs to know about a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom

if TYPE_CHECKING:
    from hpc_hipgen.radiograph.layouts import Films


class Task(ABC):
    """A model in training: its weights, its data, its loss, and what it leaves behind."""

    module: nn.Module
    """The trained network; module(**batch) returns per-image losses (b,) and a dict of scalars."""

    size: int
    """Number of data items."""

    averages: dict[str, WeightAverage]
    """Moving averages that the loop updates and stores."""

    stores_frozen = True
    """Whether checkpoints hold what is not trained, too; the weights of a base are read again."""

    @abstractmethod
    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """The inputs of `module` for the data items `indices` (b,)."""

    @abstractmethod
    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the data items, for error messages."""

    def export(self, folder: Path) -> Mapping[str, float | None]:
        """Writes the finished model into a new folder; returns figures for the record.

        By default it raises NotImplementedError: not every task has a model to keep.
        """
        raise NotImplementedError(f"{type(self).__name__} exports nothing")

    def ahead(self, indices: np.ndarray) -> None:
        """Begins, in other threads, on the items (b,) that the next `batch` will be of.

        Nothing by default: most data are at hand.
        """
        return


class FilmTask(Task):
    """A task whose data items are views."""

    reads_views = False
    """Whether `batch` reads the views' pixels, which may have to be decoded."""

    def __init__(self, films: Films) -> None:
        """`films`: what is trained on."""
        self.films, self.size = films, len(films)

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the views."""
        return [self.films.ids[i] for i in indices]

    def ahead(self, indices: np.ndarray) -> None:
        """Begins to decode the views of the next batch."""
        if self.reads_views:
            self.films.ahead(indices)


def parameter_count(module: nn.Module) -> float:
    """How many weights a module has, as a figure for the record."""
    return float(sum(p.numel() for p in module.parameters()))
