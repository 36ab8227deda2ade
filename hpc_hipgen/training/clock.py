"""The clock of a training run, counted in images seen, and what follows from it.

Data order and random numbers are pure functions of (seed, index of the image on the clock). They
do not depend on the number of ranks or on where a run was interrupted, so resuming is exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


def data_order(seed: int, start: int, count: int, n: int) -> np.ndarray:
    """Data indices, (count,) int64 in [0, n), of the images start .. start + count - 1.

    Each epoch of n images is one random permutation of the data set.
    """
    clock = np.arange(start, start + count)
    return np.array([_permutation(seed, int(i) // n, n)[int(i) % n] for i in clock], np.int64)


class ImageRandom:
    """Random numbers for a batch, each image's own: a function of (seed, clock index, stream).

    Streams are small integers or names that keep the uses apart (noise, timestep, ...).
    """

    def __init__(self, seed: int, clock: np.ndarray, branch: str = "") -> None:
        """`clock` (b,): the images' indices on the clock; `branch`: see `fork`."""
        self.seed = seed
        self.clock = [int(i) for i in clock]
        self.branch = branch

    def fork(self, name: str) -> ImageRandom:
        """The same images with other numbers in every stream, for a second use of the streams."""
        return ImageRandom(self.seed, np.array(self.clock), f"{self.branch}{name}/")

    def _generator(self, stream: str, index: int) -> torch.Generator:
        key = [self.seed, index, *f"{self.branch}{stream}".encode()]
        state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))

    def normal(self, stream: str, *shape: int) -> Tensor:
        """Standard normal numbers, (b, *shape) float32."""
        return torch.stack(
            [torch.randn(shape, generator=self._generator(stream, i)) for i in self.clock]
        )

    def uniform(self, stream: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), (b, *shape) float32."""
        return torch.stack(
            [torch.rand(shape, generator=self._generator(stream, i)) for i in self.clock]
        )

    def integers(self, stream: str, high: int) -> Tensor:
        """Integers in [0, high), (b,) int64."""
        draws = [torch.randint(high, (), generator=self._generator(stream, i)) for i in self.clock]
        return torch.stack(draws)
