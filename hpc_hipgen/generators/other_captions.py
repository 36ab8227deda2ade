"""Captions of other views: how a generator learns to believe the caption, not the picture.

A film always shows the angles of its caption, so a generator that has only seen films takes the
angles from the picture as soon as it can make them out. While it draws, the picture is its own and
a little off, and nothing puts that right. Here some images come with the caption of another view
of their film, which a warp gave other angles (radiograph/warps.py).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from hpc_hipgen.radiograph.layouts import Films
from hpc_hipgen.training.clock import ImageRandom

NEAR_BY = 15.0
"""Degrees by which the angles of two captions may differ, for one to be taken for the other."""


class OtherCaptions:
    """Chooses whose captions go with images."""

    def __init__(self, films: Films, share: float, first: float = 0.0) -> None:
        """`share` of the images from number `first` on the clock on get another's caption."""
        self.share, self.first = share, first
        self.film = films.film
        self.angles = np.stack([films.patient_left, films.patient_right], 1)

    @cached_property
    def views_of(self) -> dict[str, list[int]]:
        """The views of each film; most trainings never ask."""
        views: dict[str, list[int]] = {}
        for view, film in enumerate(self.film):
            views.setdefault(film, []).append(view)
        return views

    def choose(self, indices: np.ndarray, random: ImageRandom) -> np.ndarray:
        """For the images `indices` (b,) the views whose captions they get; mostly themselves."""
        if not self.share or max(random.clock) < self.first:
            return indices
        swapped = (random.uniform("swapped") < self.share).numpy()
        swapped &= np.array(random.clock) >= self.first
        choice = random.integers("other view", 1 << 30).tolist()
        chosen = indices.copy()
        for place in np.flatnonzero(swapped):
            if others := self._others(indices[place]):
                chosen[place] = others[choice[place] % len(others)]
        return chosen

    def _others(self, view: int) -> list[int]:
        """Other views of the film with angles near by; those of a flipped one are exchanged."""
        views = [v for v in self.views_of[self.film[view]] if v != view]
        return [v for v in views if np.abs(self.angles[v] - self.angles[view]).max() <= NEAR_BY]
