"""What the training loop needs to know about a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from hpc_hipgen.training.average import WeightAverage
from hpc_hipgen.training.clock import ImageRandom


class Task(Protocol):
    """A model in training: its weights, its data, its loss, and what it leaves behind."""

    module: nn.Module
    """The trained network; module(**batch) returns per-image losses (b,) and a dict of scalars."""

    size: int
    """Number of data items."""

    averages: dict[str, WeightAverage]
    """Moving averages that the loop updates and stores."""

    def batch(self, indices: np.ndarray, random: ImageRandom) -> dict[str, Tensor]:
        """The inputs of `module` for the data items `indices` (b,)."""
        ...

    def describe(self, indices: np.ndarray) -> list[str]:
        """Names of the data items, for error messages."""
        ...

    def export(self, folder: Path) -> Mapping[str, float | None]:
        """Writes the finished model into a new folder; returns figures for the record."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A task whose data take long to read or to decode."""

    def ahead(self, indices: np.ndarray) -> None:
        """Begins, in other threads, on the data items (b,) that the next `batch` will be of."""
        ...
